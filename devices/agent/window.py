"""Which messages are under way, and what they carry; pure: no clock, disk or socket."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from ferryman.runtime.contracts.telemetry import Priority

SIZE_MIN_BYTES = 4 << 10


class Limits(NamedTuple):
    """How much is under way at once, and when to send again."""

    in_flight: int = 20
    """Messages without the broker's acknowledgement."""
    in_flight_bytes: int = 2 << 20
    """Of those, before they are compressed."""
    unconfirmed: int = 512
    """Messages without a receipt; below the 1000 that mosquitto queues for a collector that is away."""
    unconfirmed_bytes: int = 8 << 20
    """Of those, before they are compressed."""
    again_first_s: float = 30.0
    again_cap_s: float = 600.0
    spread_s: float = 5.0
    """A fleet whose broker comes back sends within so long, not all at once."""


@dataclass
class Sent:
    """One message, until all that it carries is confirmed."""

    carried: dict[Priority, list[int]]
    """Sequences of each priority that are not confirmed, in order."""
    size: int
    """Bytes, before it was compressed."""
    bound: int
    """How large a message might be then."""
    again_at: float
    in_flight: bool = True


class Window:
    """What is under way on this connection, and what has to be sent again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._number = 0
        self.reset()

    def reset(self) -> None:
        """Nothing is under way: everything in the outbox is to be sent (again)."""
        self.messages: dict[int, Sent] = {}
        self.again: deque[tuple[Priority, list[int]]] = deque()
        """Sequences to be sent again, those that may share a message together."""
        self._confirmed_number = 0

    @property
    def in_flight(self) -> int:
        """How many messages the broker has not acknowledged."""
        return sum(sent.in_flight for sent in self.messages.values())

    def room(self) -> int:
        """How many bytes the next message may have; 0: it has to wait. A single larger record may go all the same."""
        flying = [sent.size for sent in self.messages.values() if sent.in_flight]
        if len(flying) >= self._limits.in_flight or len(self.messages) >= self._limits.unconfirmed:
            return 0
        total = sum(sent.size for sent in self.messages.values())
        return max(0, min(self._limits.in_flight_bytes - sum(flying), self._limits.unconfirmed_bytes - total))

    def sent(self, carried: dict[Priority, list[int]], size: int, bound: int, again_at: float) -> int:
        """A message went out, and what of it is not confirmed goes again at `again_at`; returns its number."""
        self._number += 1
        self.messages[self._number] = Sent(carried, size, bound, again_at)
        return self._number

    def answered(self, number: int) -> Sent | None:
        """The broker said something about this message: it counts no more against the broker's limit.

        Returns the message; None: it is no longer under way.
        """
        sent = self.messages.get(number)
        if sent is not None:
            sent.in_flight = False
        return sent

    def take_back(self, number: int) -> None:
        """The broker takes no message of that size: what it carries is sent again at once, in two."""
        self._send_again(self.messages.pop(number), halved=True)

    def confirmed(self, first: int, last: int) -> None:
        """These (both included) are done with."""
        for number, sent in list(self.messages.items()):
            left = {level: _without(sequences, first, last) for level, sequences in sent.carried.items()}
            if left != sent.carried:
                self._confirmed_number = max(self._confirmed_number, number)
                sent.carried = {level: sequences for level, sequences in left.items() if sequences}
            if not sent.carried:
                del self.messages[number]

    def overdue(self, now: float) -> int:
        """Move to `again` what was not confirmed in time; returns how many records that are.

        Where something that was sent later is confirmed, the message itself may be what is wrong: it goes in two.
        """
        due = [(number, sent) for number, sent in self.messages.items() if sent.again_at <= now]
        for number, sent in due:
            del self.messages[number]
            self._send_again(sent, halved=number < self._confirmed_number)
        return sum(len(sequences) for _, sent in due for sequences in sent.carried.values())

    def _send_again(self, sent: Sent, *, halved: bool) -> None:
        for level, sequences in sent.carried.items():
            middle = (len(sequences) + 1) // 2 if halved else len(sequences)
            self.again.extend((level, part) for part in (sequences[:middle], sequences[middle:]) if part)


def _without(sequences: list[int], first: int, last: int) -> list[int]:
    if last < sequences[0] or sequences[-1] < first:
        return sequences
    return sequences[: bisect_left(sequences, first)] + sequences[bisect_right(sequences, last) :]


class Size:
    """How large a message may be: halved where one is refused or none seems to arrive, doubled as they do."""

    def __init__(self, max_bytes: int) -> None:
        self._ceiling = max_bytes
        self.bytes = max_bytes

    def refused(self, bound: int) -> None:
        """The broker takes none of that size, now or later."""
        self._ceiling = min(self._ceiling, max(SIZE_MIN_BYTES, bound // 2))
        self.bytes = min(self.bytes, self._ceiling)

    def lost(self) -> None:
        """A connection ended before it carried a single message, or nothing was confirmed in time."""
        self.bytes = max(SIZE_MIN_BYTES, self.bytes // 2)

    def arrived(self) -> None:
        """Something was confirmed."""
        self.bytes = min(self._ceiling, self.bytes * 2)

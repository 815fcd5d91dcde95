"""Which messages are under way, and what they carry; pure: no clock, disk or socket."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


class Limits(NamedTuple):
    """How much is under way at once, and when to send again."""

    in_flight: int = 20
    """Messages without the broker's acknowledgement."""
    in_flight_bytes: int = 2 << 20
    unconfirmed: int = 512
    """Messages without a receipt; below the 1000 that mosquitto queues for a collector that is away."""
    unconfirmed_bytes: int = 8 << 20
    again_first_s: float = 30.0
    again_cap_s: float = 600.0


@dataclass
class Sent:
    """One message, until all that it carries is confirmed."""

    sequences: list[int]
    size: int
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
        self.again: deque[list[int]] = deque()
        """Sequences of messages to be sent again, those of one message together."""
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

    def sent(self, sequences: list[int], size: int, again_at: float) -> int:
        """A message went out, and what of it is not confirmed goes again at `again_at`; returns its number."""
        self._number += 1
        self.messages[self._number] = Sent(sequences, size, again_at)
        return self._number

    def answered(self, number: int) -> list[int]:
        """The broker said something about this message: it counts no more against the broker's limit.

        Returns what of it is not confirmed yet.
        """
        sent = self.messages.get(number)
        if sent is None:
            return []
        sent.in_flight = False
        return sent.sequences

    def take_back(self, number: int) -> None:
        """The broker takes no message of that size: what it carries is sent again at once, in two."""
        sent = self.messages.pop(number, None)
        if sent is not None:
            self._halve(sent.sequences)

    def confirmed(self, first: int, last: int) -> None:
        """These (both included) are done with."""
        for number, sent in list(self.messages.items()):
            if last < sent.sequences[0] or sent.sequences[-1] < first:
                continue
            sent.sequences = [s for s in sent.sequences if not first <= s <= last]
            self._confirmed_number = max(self._confirmed_number, number)
            if not sent.sequences:
                del self.messages[number]

    def overdue(self, now: float) -> int:
        """Move to `again` what was not confirmed in time; returns how many records that are.

        Where something that was sent later is confirmed, the message itself may be what is wrong: it goes in two.
        """
        due = [(number, sent) for number, sent in self.messages.items() if sent.again_at <= now]
        for number, sent in due:
            del self.messages[number]
            if number < self._confirmed_number:
                self._halve(sent.sequences)
            else:
                self.again.append(sent.sequences)
        return sum(len(sent.sequences) for _, sent in due)

    def _halve(self, sequences: list[int]) -> None:
        middle = (len(sequences) + 1) // 2
        self.again.extend(part for part in (sequences[:middle], sequences[middle:]) if part)

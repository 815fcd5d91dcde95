"""What telemetry may cost on the wire: bytes a second, and bytes a day that are counted on disk before they are spent.

Bytes are those of PUBLISH packets: what IP, TCP and TLS add is not seen from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from ferryman.devices.agent.clock import Reading, kernel_boot
from ferryman.devices.agent.modes import Mode
from ferryman.devices.agent.outbox import KEEP_DAYS, MAX_BYTES, Outbox
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.telemetry import Priority

NOTE = "spending"
RATE_MIN_BYTES_S = 100
DAY_MIN_BYTES = 10_000
_DAY_NS = 86_400 * 10**9
_LEAST_NS = 20 * 3_600 * 10**9
"""Between one midnight and the next, whatever the wall clock says."""
_KEEP_EVERY_NS = 600 * 10**9
_RESERVED = 10
"""One part in so many of a day's budget is for VITAL alone."""


@dataclass(frozen=True)
class TelemetryConfig:
    """What an agent may spend on telemetry, and how long it keeps what it cannot send."""

    rate_bytes_s: int | None = None
    day_max_bytes: int | None = None
    mode: Mode = "full"
    """As long as nobody has switched it on the device."""
    keep_days: float = KEEP_DAYS
    outbox: Path | None = None
    """Folder of the outbox; None: the agent's root."""
    outbox_max_bytes: int = MAX_BYTES

    def check(self) -> None:
        """See that something can be sent so.

        Raises:
            CallerError: a limit is too small.
        """
        for name, value, least in (
            ("a second", self.rate_bytes_s, RATE_MIN_BYTES_S),
            ("a day", self.day_max_bytes, DAY_MIN_BYTES),
        ):
            if value is not None and value < least:
                raise CallerError(f"telemetry: at least {least} bytes {name} are needed, found {value}")


class Account(Record):
    """What was spent of this day's budget."""

    boot: str = ""
    """The kernel's; empty: nothing was spent yet."""
    uptime_ns: int = 0
    """CLOCK_BOOTTIME when this was written."""
    elapsed_ns: int = 0
    """Of running since the budget last began anew, then."""
    renewals: int = 0
    """How often it began anew."""
    guarded: bool = False
    """Whether it last began anew in this boot."""
    day: int | None = None
    """Days since 1970, UTC, by a synchronised clock; None: there was none yet."""
    spent_bytes: int = 0
    day_max_bytes: int | None = None
    """As the agent was last told; None: no limit."""
    mode: Mode = "full"
    """As the agent was last told, for when nobody has switched."""


def passed(account: Account, now: Reading, boot: str, day_max_bytes: int | None) -> Account:
    """The same account at a later time.

    A budget begins anew with a later UTC day of a synchronised clock, but no sooner than 20 hours after it last did in
    this boot; without such a clock after 24 hours of running. So a clock that jumps to and fro wins nothing, and one
    that was set back takes nothing away. What was spent over a day's budget comes off the next.
    """
    same_boot = account.boot == boot
    elapsed_ns = account.elapsed_ns
    if account.boot:
        elapsed_ns += max(0, now.uptime_ns - account.uptime_ns) if same_boot else now.uptime_ns
    guarded = account.guarded and same_boot
    today = now.time_ns // _DAY_NS if now.sure else None
    later = today is not None and account.day is not None and today > account.day
    # Two days: the clock was set back by more than one.
    anew = (later and not (guarded and elapsed_ns < _LEAST_NS)) or elapsed_ns >= (
        _DAY_NS if today is None else 2 * _DAY_NS
    )
    over = max(0, account.spent_bytes - day_max_bytes) if day_max_bytes is not None else 0
    return Account(
        boot=boot,
        uptime_ns=now.uptime_ns,
        elapsed_ns=0 if anew else elapsed_ns,
        renewals=account.renewals + anew,
        guarded=anew or guarded,
        day=account.day if today is None or (later and not anew) else today,
        spent_bytes=over if anew else account.spent_bytes,
        day_max_bytes=day_max_bytes,
        mode=account.mode,
    )


class Share(NamedTuple):
    """Records of these priorities may cost so much still today; None: no limit."""

    levels: tuple[Priority, ...]
    left_bytes: int | None
    whole_bytes: int | None
    """What it is on a day of which nothing was spent."""


class Spending:
    """The account of one outbox; one thread of one process uses it."""

    def __init__(self, outbox: Outbox, config: TelemetryConfig) -> None:
        """Say what may be spent; what was, `roll` reads.

        Raises:
            CallerError: nothing can be sent with limits so small.
        """
        config.check()
        self._outbox = outbox
        self._config = config
        self._boot = kernel_boot()
        self._free_at = 0.0
        self._kept: Account | None = None
        self._kept_in = ""
        self._account = Account()

    def wait_s(self, now: float) -> float:
        """How long the rate lets nothing go, at a monotonic time."""
        return max(0.0, self._free_at - now)

    def message_max_bytes(self, max_bytes: int) -> int:
        """How large a message may be: what goes in a second, and no more than `max_bytes`."""
        return max_bytes if self._config.rate_bytes_s is None else min(max_bytes, self._config.rate_bytes_s)

    def roll(self) -> bool:
        """See what day it is, before anything else; whether the budget has begun anew.

        Raises:
            DeviceError: the disk is full or broken.
        """
        if self._kept is None:
            self._kept, self._kept_in = _read(self._outbox.note(NOTE)), self._outbox.id
            self._account = msgspec.structs.replace(self._kept, mode=self._config.mode)
        before, kept = self._account, self._kept
        self._account = passed(before, self._outbox.clock(), self._boot, self._config.day_max_bytes)
        anew = self._account.renewals > before.renewals
        if anew or self._kept_in != self._outbox.id or _differ(self._account, kept):
            self._keep(self._account)
        return anew

    def shares(self) -> tuple[Share, ...]:
        """What may be spent now: first by all, then by what is VITAL."""
        day_max, spent = self._config.day_max_bytes, self._account.spent_bytes
        if day_max is None:
            return (Share(tuple(Priority), None, None),)
        common = day_max - day_max // _RESERVED
        return (
            Share(tuple(Priority), common - spent, common),
            Share((Priority.VITAL,), day_max - spent, day_max),
        )

    def spend(self, count: int, now: float) -> None:
        """Write down bytes that are about to go.

        Raises:
            DeviceError: they cannot be counted; they must not go.
        """
        account = passed(self._account, self._outbox.clock(), self._boot, self._config.day_max_bytes)
        account = msgspec.structs.replace(account, spent_bytes=account.spent_bytes + count)
        if self._config.day_max_bytes is not None:
            self._keep(account)
        self._account = account
        if self._config.rate_bytes_s is not None:
            self._free_at = max(self._free_at, now) + count / self._config.rate_bytes_s

    def _keep(self, account: Account) -> None:
        try:
            self._outbox.keep_note(NOTE, encode(account), durable=self._config.day_max_bytes is not None)
            self._kept, self._kept_in = account, self._outbox.id
        except DeviceError:
            if self._config.day_max_bytes is not None:
                raise


def _differ(account: Account, kept: Account) -> bool:
    """Whether it is worth a write: time alone is now and then."""
    if account.elapsed_ns - kept.elapsed_ns > _KEEP_EVERY_NS:
        return True
    return account != msgspec.structs.replace(kept, uptime_ns=account.uptime_ns, elapsed_ns=account.elapsed_ns)


def read_account(outbox: Outbox) -> Account:
    """What was spent, as of now.

    Raises:
        DeviceError: the disk is broken.
    """
    kept = _read(outbox.note(NOTE))
    return passed(kept, outbox.clock(), kernel_boot(), kept.day_max_bytes)


def _read(kept: bytes | None) -> Account:
    try:
        return decode(kept, Account) if kept is not None else Account()
    except ValueError:
        return Account()

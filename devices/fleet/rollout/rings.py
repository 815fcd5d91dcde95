"""Which device is in which ring: `1,10%,50%,100%` are totals, by number or share of the rollout's devices.

The choice depends on the release and the devices alone: a plan that was looked at is the plan that is run, and another
release has other canaries. The first ring holds one of each kind of device that is online,
even where that is more than it asks for; devices that are offline come last, and hold nobody up.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from ferryman.devices.fleet.rollout.query import Target
from ferryman.runtime.contracts.errors import CallerError

DEFAULT = "1,10%,50%,100%"
_COUNT = re.compile(r"(?P<share>\d{1,3}(?:\.\d{1,3})?)%|(?P<number>[1-9]\d{0,8})", re.ASCII)
_ALL_PERCENT = 100.0


def parse_rings(text: str) -> tuple[str, ...]:
    """Read totals with commas between; `100%` is added where it is missing.

    Raises:
        CallerError: it is something else, or a share is less than the one before it.
    """
    rings = tuple(part.strip() for part in text.split(",")) if isinstance(text, str) else ("",)
    shares = [float(found["share"]) for one in rings if (found := _COUNT.fullmatch(one)) and found["share"]]
    if (
        not all(map(_COUNT.fullmatch, rings))
        or shares != sorted(shares)
        or not all(0 < s <= _ALL_PERCENT for s in shares)
    ):
        raise CallerError(
            f"rings {text!r}: expected growing totals of devices, as numbers or shares, such as {DEFAULT}"
        )
    return rings if rings[-1] == "100%" else (*rings, "100%")


def parse_failures(text: str) -> str:
    """Check how many devices of a ring may fail: `2`, `0` or `5%`.

    Raises:
        CallerError: it is something else.
    """
    found = _COUNT.fullmatch(text) if isinstance(text, str) else None
    if text != "0" and (found is None or float(found["share"] or 0) > _ALL_PERCENT):
        raise CallerError(f"failures {text!r}: expected a number, or a share of each ring, such as 5%")
    return text


def allowed(failures_max: str, devices: int) -> int:
    """How many of so many devices may fail."""
    return math.floor(_part(failures_max, devices))


def assign(release: str, rings: Sequence[str], targets: Iterable[Target], offline: frozenset[str]) -> dict[str, int]:
    """Device -> ring, from 0 on without gaps, in the order in which they are asked."""

    def key(target: Target) -> tuple[bool, bytes]:
        return target.name in offline, hashlib.sha256(f"{release}\0{target.name}".encode()).digest()

    by_hash = sorted(targets, key=key)
    canaries: dict[str, Target] = {}
    for one in by_hash:
        if one.name not in offline:
            canaries.setdefault(one.model, one)
    first = {one.name for one in canaries.values()}
    names = [*(one.name for one in canaries.values()), *(one.name for one in by_hash if one.name not in first)]
    assigned: dict[str, int] = {}
    ring = 0
    for position, asked in enumerate(rings):
        total = min(math.ceil(_part(asked, len(names))), len(names))
        if position == 0:
            total = max(total, len(first))
        part = names[len(assigned) : total]
        assigned |= dict.fromkeys(part, ring)
        ring += bool(part)
    return assigned


def _part(asked: str, devices: int) -> Fraction:
    """A number, or a share of devices: not by floats, in which 7 % of 100 is a little more than 7."""
    share = asked.removesuffix("%")
    return Fraction(share) if share == asked else devices * Fraction(share) / 100

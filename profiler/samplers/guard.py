"""Around a meter's code, which may be someone's own: what it raises, how long it takes, and what it states."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import TypeVar

from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

PERIOD_S = (1e-4, 60.0)
"""Faster, the reader would take the processor from the runs; slower, a window of ten readings would take too long."""
_WAIT_S = (0.0, 60.0)
_RESOLUTION = (0.0, 1e6)
_UNCERTAINTY = (0.0, 1.0)
_NAME_MAX, _NOTE_MAX, _RAILS_MAX, _REASON_MAX = 500, 2000, 1000, 400
_SHOWN_MAX = 60
_PARTS = ("period_s", "settle_s", "source", "read", "close")
T = TypeVar("T")


@dataclass(frozen=True)
class Stated:
    """What a sampler says of itself, checked; see `Sampler`."""

    period_s: float
    settle_s: float
    source: EnergySource


def answer(call: Callable[[], T], what: str, timeout_s: float) -> T:
    """Call it in a thread of its own, so that it can be left behind, and so that Ctrl-C is never taken for its doing.

    Args:
        call: into a meter's code.
        what: it is, for the message.
        timeout_s: after which it is left behind.

    Raises:
        SensorError: it did not answer, or raised anything, SystemExit and KeyboardInterrupt included.
    """
    found: list[T] = []
    failures: list[str] = []

    def ask() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001  # a meter of someone's own may raise anything
            failures.append(words(error))

    thread = threading.Thread(target=ask, name="meter", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if found:
        return found[0]
    raise SensorError(failures[0] if failures else f"{what} did not answer within {timeout_s:g} s")


def words(error: BaseException) -> str:
    """What went wrong, as a line that a record can hold."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # an error of someone's own, too
        text = ""
    return line_of(text if isinstance(error, SensorError) else f"{type(error).__name__}: {text}")


def line_of(text: str) -> str:
    """Printable, and not too long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_REASON_MAX])


def stated(sampler: object) -> Stated:
    """Ask a sampler what it is, and check it; runs its code, so call it by `answer`.

    Raises:
        SensorError: it lacks a part, or one makes no sense; says which, what was expected and what was found.
    """
    for part in _PARTS:
        if not hasattr(sampler, part):
            raise SensorError(f"expected {', '.join(_PARTS)} of a meter, found {shown(sampler)} without {part}")
    for part in ("read", "close"):
        if not callable(found := getattr(sampler, part)):
            raise SensorError(f"{part}: expected a method, found {shown(found)}")
    return Stated(
        period_s=_number("period_s", getattr(sampler, "period_s"), PERIOD_S),  # noqa: B009  # of an `object`
        settle_s=_number("settle_s", getattr(sampler, "settle_s"), _WAIT_S),  # noqa: B009
        source=_source(getattr(sampler, "source")),  # noqa: B009
    )


def shown(value: object) -> str:
    """It, in a message."""
    return line_of(repr(value))[:_SHOWN_MAX]


def reason_of(of: str, unavailable: Unavailable) -> Unavailable:
    """It, once its reason is seen to be a line.

    Raises:
        SensorError: it is not; `of` goes before.
    """
    return Unavailable(reason=_text(f"{of}reason", unavailable.reason, _NOTE_MAX))


def _source(source: object) -> EnergySource:
    """A copy, for subclasses of float and str are no part of a record."""
    if not isinstance(source, EnergySource):
        raise SensorError(f"source: expected an EnergySource, found {shown(source)}")
    unit: object = source.unit
    if unit not in ("W", "J"):
        raise SensorError(f"unit: expected 'W' or 'J', found {shown(unit)}")
    rails: object = source.rails
    if not isinstance(rails, tuple | list) or not 0 < len(rails) <= _RAILS_MAX:
        raise SensorError(f"rails: expected 1 to {_RAILS_MAX} names, found {shown(rails)}")
    return EnergySource(
        name=_text("name", source.name, _NAME_MAX),
        rails=tuple(_text("rails", rail, _NAME_MAX) for rail in rails),
        unit="W" if unit == "W" else "J",
        resolution=_known("resolution", source.resolution, _RESOLUTION),
        renewed_s=_known("renewed_s", source.renewed_s, _WAIT_S),
        uncertainty=_known("uncertainty", source.uncertainty, _UNCERTAINTY),
        note=_text("note", source.note, _NOTE_MAX, least=0),
    )


def _known(field: str, value: object, between: tuple[float, float]) -> float | Unavailable:
    if isinstance(value, Unavailable):
        return reason_of(f"{field}: ", value)
    return _number(field, value, between)


def _number(field: str, value: object, between: tuple[float, float]) -> float:
    low, high = between
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):
            number = float(value)
    if not low <= number <= high:
        raise SensorError(f"{field}: expected a number from {low:g} to {high:g}, found {shown(value)}")
    return number


def _text(field: str, value: object, most: int, least: int = 1) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most or not value.isprintable():
        raise SensorError(f"{field}: expected {least} to {most} printable characters, found {shown(value)}")
    return str(value)

"""How a rollout goes, as a person may write it: read before anything is written down or sent."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.rollout import Window

R = TypeVar("R", bound=Record)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DAY_MINUTES = 24 * 60


def parse_window(value: Window | str) -> Window:
    """`22:00-05:30`, in each device's local time.

    Raises:
        CallerError: it is something else.
    """
    if isinstance(value, Window):
        begin, end = value.begin_minute, value.end_minute
    else:
        found = re.fullmatch(r"(\d{1,2}):([0-5]\d)-(\d{1,2}):([0-5]\d)", str(value).strip(), re.ASCII)
        begin, end = (60 * int(found[h]) + int(found[h + 1]) for h in (1, 3)) if found else (0, 0)
    if not all(isinstance(one, int) and 0 <= one < _DAY_MINUTES for one in (begin, end)) or begin == end:
        raise CallerError(f"{value!r} is not a time of day from, to, such as 22:00-05:30")
    return Window(begin_minute=begin, end_minute=end)


def parse_duration(value: float | str) -> float:
    """Seconds, or a text with a unit: `90`, `10m`, `2h`, `1d`.

    Raises:
        CallerError: it is something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", str(value).strip(), re.ASCII)
    if found is None or not isinstance(value, str):
        raise CallerError(f"{value!r} is not a duration, such as 90, 10m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


def as_record(what: str, value: R | Mapping[str, Any], kind: type[R]) -> R:
    """Read a record of options, or a mapping of its fields.

    Raises:
        CallerError: it is something else, has a field that there is not, or one of the wrong type.
    """
    given = value if isinstance(value, Mapping) else msgspec.structs.asdict(value) if isinstance(value, kind) else None
    if given is None:
        raise CallerError(f"{what}: expected a {kind.__name__} or its fields, found {value!r}")
    check_names(f"{what} has", given, kind.__struct_fields__)
    for name, one in given.items():
        if isinstance(one, float) and not 0 <= one < math.inf:
            raise CallerError(f"{what}, {name}: expected a number from 0 on, found {one!r}")
    try:
        return msgspec.convert(dict(given), kind)
    except msgspec.ValidationError as error:
        raise CallerError(f"{what}: {error}") from error


def check_names(who: str, given: Iterable[str], there: Iterable[str]) -> None:
    """See that there are options of these names.

    Raises:
        CallerError: there are not; the message lists those that there are.
    """
    if unknown := sorted({*map(str, given)} - {*there}):
        raise CallerError(f"{who} no option {', '.join(unknown)}; there are: {', '.join(there)}")


def option_names(function: Callable[..., Any], without: Iterable[str]) -> list[str]:
    """The options that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in {*without}]

"""Measurements and their numbers out of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ferryman.devices.fleet.metrics import METRICS, Value
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.reading import Stored, decoded
from ferryman.devices.fleet.query.sane import check
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import Unavailable

_THREADS_MAX = 1 << 31


def measured(
    one: Stored,
    left_out: LeftOut,
    wanted: Callable[[Measurement], bool] = lambda _: True,
    names: Iterable[str] = METRICS,
) -> tuple[Measurement, dict[str, Value]] | None:
    """A measurement and these metrics of it; None: it is not wanted, or damaged, which `left_out` is told."""
    found = decoded(one, "measurement", Measurement, left_out)
    if found is None or not wanted(found):
        return None
    try:
        check("threads", (found.spec.threads,), 0, _THREADS_MAX)
        with np.errstate(all="ignore"):
            values = {name: METRICS[name](found) for name in names}
        for name, value in values.items():
            if not isinstance(value, Unavailable):
                check(name, (value,))
    except (ValueError, ArithmeticError, IndexError) as error:
        left_out.damaged("measurement", one.name(), error)
        return None
    return found, values

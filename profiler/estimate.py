"""Joules by a model, where nothing measures them: an estimate, under its own name, and only when someone asks for it.

    power = idle_w + core_w * (processor seconds a second)

It knows of processor time alone: not of the clock, the voltage, the instructions, memory traffic or an accelerator, so
two networks that keep the same cores busy take the same power by it. Good for an order of magnitude; the same number of
joules to two candidates says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import MappingProxyType

from ferryman.runtime.contracts.energy import EnergyEstimate, PowerModel
from ferryman.runtime.contracts.errors import CallerError

_WATTS_MAX = 1e4
# Of a board at its plug, all four cores loaded less idle, over four.
_PIDRAMBLE = "pidramble.com, Power Consumption: idle and `stress --cpu 4` at 5 V"
MODELS = MappingProxyType(
    {
        "raspberry-pi-4b": PowerModel(idle_w=2.7, core_w=0.925, source=_PIDRAMBLE),
        "raspberry-pi-3b+": PowerModel(idle_w=1.9, core_w=0.8, source=_PIDRAMBLE),
    }
)


def power_model(name: str) -> PowerModel:
    """One of MODELS, or `IDLE_W,CORE_W` as a user states them.

    Raises:
        CallerError: it is neither.
    """
    if name in MODELS:
        return MODELS[name]
    try:
        idle_w, core_w = (float(part) for part in name.split(","))
    except ValueError as error:
        raise CallerError(f"no power model {name!r}; there are {', '.join(MODELS)}, or IDLE_W,CORE_W") from error
    if not (0 <= idle_w <= _WATTS_MAX and 0 <= core_w <= _WATTS_MAX):
        raise CallerError(f"power model {name!r}: expected watts from 0 to {_WATTS_MAX:g}")
    return PowerModel(idle_w=idle_w, core_w=core_w, source="the user")


def estimate_energy(
    run: Callable[[], object],
    model: PowerModel,
    *,
    window_s: float = 1.0,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    cpu_ns: Callable[[], int] = time.process_time_ns,
) -> EnergyEstimate:
    """Run for a while, and take the process's processor time.

    Args:
        run: one inference; what it raises is raised here.
        model: of this device.
        window_s: how long, at least one run.
        clock_ns: of the window.
        cpu_ns: processor time of all threads of the process.
    """
    begin_ns, cpu_begin_ns, runs = clock_ns(), cpu_ns(), 0
    until_ns = begin_ns + round(window_s * 1e9)
    while True:
        run()
        runs += 1
        if (now_ns := clock_ns()) >= until_ns:
            break
    return EnergyEstimate(
        model=model, window_s=(now_ns - begin_ns) / 1e9, cpu_s=(cpu_ns() - cpu_begin_ns) / 1e9, runs=runs
    )

"""How long a model takes, for budgets in latency.

A budget takes any function from a module to seconds: `measured_latency` times on an interpreter of this machine,
`ferryman.latency_on` on a device by its name.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ferryman.converter.capture import capture
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.verify import Interpreter, interpreters
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.session import INTERPRETERS

if TYPE_CHECKING:  # the toolchains are slow to load
    from ferryman.converter.backends.base import Backend

Latency = Callable[[nn.Module], float]
"""Seconds of one call of a module in eval mode."""
_ROUNDS = 20


def measured_latency(example: tuple[Any, ...], interpreter: str, *, rounds: int = _ROUNDS) -> Latency:
    """Time a module's fp32 artifact on an interpreter of this machine; one thread.

    Args:
        example: positional inputs of one call, tensors.
        interpreter: one of `ferryman.runtime.session.INTERPRETERS`' names.
        rounds: the fastest counts, which other work on the machine disturbs least.

    Raises:
        CallerError: no interpreter is named so, or it is not installed here.
    """
    place, backend = find_interpreter(interpreter)

    def measure(model: nn.Module) -> float:
        with quiet():
            data = backend.lower(capture(make_source(model, example))).data
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{backend.suffix}"
            path.write_bytes(data)
            inputs = [one.detach().numpy() for one in example]
            (seconds,) = time_beside([path], interpreter, [inputs], rounds=rounds, python=place.python)
        return min(seconds)

    return measure


def find_interpreter(name: str) -> tuple[Interpreter, Backend]:
    """Where an interpreter is, and what lowers to it.

    Raises:
        CallerError: none is named so, or it is not installed here.
    """
    runtimes: dict[str, RuntimeName] = {name: runtime for runtime, names in INTERPRETERS.items() for name in names}
    if name not in runtimes:
        raise CallerError(f"interpreter {name!r} is not known; there are: {', '.join(runtimes)}")
    with quiet():
        from ferryman.converter.backends import BACKENDS  # the toolchains, which are slow to load

    (place,) = interpreters(runtimes[name], (name,))
    return place, BACKENDS[runtimes[name]]


def checked(latency: Latency) -> Latency:
    """The same, and what it gives is seconds.

    Raises:
        CallerError: when called, it gives something else.
    """

    def measure(model: nn.Module) -> float:
        seconds = latency(model)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise CallerError(f"latency must give seconds, a finite number above 0; found {seconds!r}")
        return float(seconds)

    return measure

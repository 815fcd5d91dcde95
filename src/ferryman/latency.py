"""How long a model takes on a named device: what a latency budget is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ferryman.devices.fleet.inventory import Device
from ferryman.fleet import Fleet
from ferryman.runtime.contracts.errors import CallerError, from_wire
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import Unavailable

if TYPE_CHECKING:
    from torch import nn

_LATENCY = "latency_ms"


def latency_on(
    device: Device,
    inputs: Any,  # noqa: ANN401  # as `convert` takes them
    *,
    to: Literal["executorch", "tflite"] = "executorch",
    form: str = "fp32",
    interpreter: str | None = None,
    runs: int = 100,
    progress: Callable[[str], None] = lambda _: None,
) -> Callable[[nn.Module], float]:
    """A function from a model to the seconds one call of it takes on a device, one thread: the median.

    Each model is measured as `Fleet.measure` does it: converted, on a device other than `local` pushed there, where it
    takes the place of what the device serves, and remembered.

    Args:
        device: where, as `find_device` finds it.
        inputs: the example call.
        to: the runtime.
        form: of the artifact.
        interpreter: of that runtime; None: the fastest of those the device has.
        runs: of one measurement.
        progress: told what begins.

    Returns:
        The function; it raises what `convert`, `push` and `profile` raise.

    Raises:
        CallerError: the device is a name.
    """
    if isinstance(device, str):
        raise CallerError(f"the device {device!r} is named: give find_device({device!r}), which finds it")
    spec = ProfileSpec(runs=runs, interpreters=() if interpreter is None else (interpreter,))
    fleet = Fleet()

    def measure(model: nn.Module) -> float:
        table = fleet.measure([(model, inputs)], device, (_LATENCY,), to=(to,), form=form, spec=spec, progress=progress)
        for row in table.failed:
            assert row.error is not None  # noqa: S101  # that is what failed says
            raise from_wire(row.error)
        latency_ms = table.best(_LATENCY)[_LATENCY]
        assert not isinstance(latency_ms, Unavailable)  # noqa: S101  # the best has one
        return latency_ms / 1e3

    return measure

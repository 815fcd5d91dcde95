"""How long a model takes on a named device: what a latency budget is held against."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ferryman.devices.fleet.inventory import Device, LocalDevice
from ferryman.devices.fleet.profile import profile
from ferryman.devices.fleet.push import push
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import ProfileSpec

if TYPE_CHECKING:
    from torch import nn

_NAME = "candidate"


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

    Each model is converted and measured; on a device other than `local` it is also pushed there first and takes the
    place of what the device serves, so name one that serves nobody.

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

    def measure(model: nn.Module) -> float:
        from ferryman.converter.api import convert

        with tempfile.TemporaryDirectory() as folder:
            made = convert(model, inputs, to=(to,), form=form, output=Path(folder), name=_NAME, progress=progress)
            if not isinstance(device, LocalDevice):
                push(made.path, device)
            found = profile(made.path, device, spec, progress=progress)
        return min(statistics.median(one.samples_ns) for one in found) / 1e9

    return measure

"""Ask devices what models cost, from inside a search: each is converted, measured on them, and remembered."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ferryman.devices.fleet.answers import Answers, cache_home
from ferryman.devices.fleet.inventory import Device, find_device, read_devices
from ferryman.devices.fleet.metrics import check_metrics
from ferryman.devices.fleet.oracle import Candidate, Hands, Oracle
from ferryman.devices.fleet.table import Table
from ferryman.runtime.contracts.errors import CallerError, WireError, to_wire
from ferryman.runtime.contracts.measurement import ProfileSpec

Progress = Callable[[str], None]
_METRICS = ("latency_ms", "memory_mb", "artifact_kb")
_PACKAGE = "candidate"
"""Its name is in a package's hash; the candidate's own name must not be, or the same model is measured twice."""


class Fleet:
    """The devices of a devices file, as a search asks them."""

    def __init__(
        self, devices_file: Path | str | None = None, cache: Path | str | None = None, *, hands: Hands | None = None
    ) -> None:
        """Read the devices file.

        Args:
            devices_file: None takes the usual one; `local`, this machine, needs none.
            cache: folder of what was measured before; None takes `ferryman/fleet` in the user's cache.
            hands: how devices are asked; a test brings its own.

        Raises:
            CallerError: the devices file cannot be read.
        """
        self._source = devices_file
        self._devices = read_devices(devices_file)
        self._oracle = Oracle(Answers(Path(cache) if cache else cache_home() / "fleet"), hands)

    def measure(
        self,
        candidates: Mapping[str, Any] | Sequence[Any],
        device: str | Device | Sequence[str | Device] = "local",
        metrics: Sequence[str] = _METRICS,
        *,
        inputs: Any = None,  # noqa: ANN401  # as `convert` takes them
        to: Sequence[Literal["executorch", "tflite"]] = ("executorch",),
        form: str = "fp32",
        spec: ProfileSpec | None = None,
        fresh: bool = False,
        progress: Progress = lambda _: None,
    ) -> Table:
        """Measure candidates; whichever fails is a row with its error.

        A device other than `local` serves each candidate in turn and keeps the last, so name one that serves nobody.

        Args:
            candidates: packages (their paths), modules in eval mode, or pairs (module, inputs); by name, or in a row.
            device: one or several, by name or as `find_device` finds them; several work at the same time.
            metrics: names, see docs/profiler/search.md.
            inputs: the example call of modules that come without.
            to: runtimes that modules are converted to.
            form: of the artifacts.
            spec: how to measure, and which variants and interpreters; whether energy is measured the metrics say.
            fresh: measure also what was measured before under the same conditions.
            progress: told what begins, by one thread at a time.

        Returns:
            A row for each candidate, device, variant and interpreter.

        Raises:
            CallerError: a metric or device is not known, or a candidate is nothing of the above.
        """
        names = check_metrics(metrics)
        named = _named(candidates, inputs)
        several = [device] if isinstance(device, str) or not isinstance(device, Sequence) else device
        devices = [find_device(self._devices, one, self._source) if isinstance(one, str) else one for one in several]
        with tempfile.TemporaryDirectory(prefix="ferryman-fleet-") as folder:

            def package(number: int, name: str, given: Any) -> Path | WireError:  # noqa: ANN401  # see `candidates`
                if isinstance(given, str | Path):
                    return Path(given)
                from ferryman.converter.api import convert

                progress(f"converting {name}, {number + 1}/{len(named)}")
                model, example = given if isinstance(given, tuple) else (given, inputs)
                try:
                    made = convert(model, example, to=to, form=form, output=Path(folder, str(number)), name=_PACKAGE)
                except Exception as error:  # noqa: BLE001  # one that is refused does not end the search
                    return to_wire(error)
                return made.path

            # All are converted first: on `local` that would disturb what is being measured.
            made = [Candidate(name, package(number, name, given)) for number, (name, given) in enumerate(named)]
            return self._oracle.ask(made, devices, names, spec or ProfileSpec(), fresh=fresh, progress=progress)


def _named(candidates: Mapping[str, Any] | Sequence[Any], inputs: Any) -> list[tuple[str, Any]]:  # noqa: ANN401  # as above
    """Candidates with a name each: their own, or the package's or class's, with a number where several have it.

    Raises:
        CallerError: there are none, or one is nothing that can be measured.
    """
    if isinstance(candidates, str | Path) or not isinstance(candidates, Mapping | Sequence) or not candidates:
        raise CallerError("candidates are one or more in a list, or in a dict by name")
    given = list(candidates.values() if isinstance(candidates, Mapping) else candidates)
    names = [_name(one, inputs) for one in given]
    if isinstance(candidates, Mapping):
        return list(zip(map(str, candidates), given, strict=True))
    count = Counter(names)
    return [
        (name if count[name] == 1 else f"{name} {number}", one)
        for number, (name, one) in enumerate(zip(names, given, strict=True))
    ]


def _name(candidate: Any, inputs: Any) -> str:  # noqa: ANN401  # as above
    """The package's or class's.

    Raises:
        CallerError: it is nothing that can be measured.
    """
    if isinstance(candidate, str | Path):
        return Path(candidate).stem
    pair = isinstance(candidate, tuple) and len(candidate) == 2  # noqa: PLR2004  # module and inputs
    module = candidate[0] if pair else candidate
    if not hasattr(module, "named_parameters") or not (pair or inputs is not None):
        raise CallerError(
            "a candidate is the path of a package, an nn.Module where there are inputs, or a pair (module, inputs); "
            f"found {candidate!r:.100}"
        )
    return type(module).__name__

"""Eager against artifact, on the real interpreters, each in a process that may crash: wrong never ships."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ferryman.converter.capture import Captured
from ferryman.converter.inputs import input_sets
from ferryman.runtime.compare import Difference, compare
from ferryman.runtime.contracts.errors import CallerError, FerrymanError, ParityError
from ferryman.runtime.contracts.manifest import GoldenVector, RuntimeName, Verification
from ferryman.runtime.contracts.tensor import Array, Signature, to_tensors
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.session import INTERPRETERS, installed

SQNR_MIN_DB = {"fp32": 60.0, "binary": 30.0}
"""Form -> the bar its artifacts must hold. Where a float layer's last bit decides a sign, a binary network answers a
little differently; each of its operators is exact."""
DEVICE_PYTHON = "FERRYMAN_DEVICE_PYTHON"
_RANDOM_SETS = 4
_GOLDEN_SETS = 2


@dataclass(frozen=True)
class References:
    """Input sets and what eager answers to each."""

    inputs: tuple[tuple[Array, ...], ...]
    outputs: tuple[tuple[Array, ...], ...]

    def golden(self) -> tuple[GoldenVector, ...]:
        """The first few, for the package."""
        pairs = list(zip(self.inputs, self.outputs, strict=True))[:_GOLDEN_SETS]
        return tuple(GoldenVector(inputs=to_tensors(i), outputs=to_tensors(o)) for i, o in pairs)


@dataclass(frozen=True)
class Interpreter:
    """One interpreter this host can verify on."""

    name: str
    python: Path


def make_references(captured: Captured) -> References:
    """Run eager over the example and random inputs."""
    sets = list(input_sets(captured, _RANDOM_SETS))
    before = {name: buffer.clone() for name, buffer in captured.source.module.named_buffers()}
    references = References(
        inputs=tuple(tuple(tensor.numpy() for tensor in one) for one in sets),
        outputs=tuple(tuple(captured.eager(one)) for one in sets),
    )
    for name, buffer in captured.source.module.named_buffers():  # a model with state is given back as it came
        buffer.copy_(before[name])
    return references


def interpreters(runtime: RuntimeName, only: Sequence[str] = ()) -> list[Interpreter]:
    """Where artifacts of `runtime` can be verified: this environment, then the device environment.

    The device environment (tflite-runtime and numpy < 2, which do not go with torch's numpy) is the Python named by
    FERRYMAN_DEVICE_PYTHON, else `.venv-device/bin/python` in the current directory, else none.

    Args:
        runtime: whose.
        only: where it names interpreters of this runtime, these and no others.

    Raises:
        CallerError: FERRYMAN_DEVICE_PYTHON names no file, or one of `only` is not to be found.
    """
    found = [Interpreter(name, Path(sys.executable)) for name in installed(runtime)]
    device = _device_python()
    if device and runtime == "tflite" and "tflite-runtime" not in installed(runtime):
        found.append(Interpreter("tflite-runtime", device))
    named = [name for name in INTERPRETERS[runtime] if name in only]
    if missing := set(named) - {place.name for place in found}:
        raise CallerError(f"{', '.join(missing)} is not installed here; see {DEVICE_PYTHON} in the README")
    return [place for place in found if not named or place.name in named]


def _device_python() -> Path | None:
    named = os.environ.get(DEVICE_PYTHON)
    path = Path(named or ".venv-device/bin/python")
    if path.is_file():
        return path.absolute()
    if named:
        raise CallerError(f"{DEVICE_PYTHON} names {named}, and there is no such file")
    return None


def verify(
    artifact: Path,
    variant: str,
    runtime: RuntimeName,
    references: References,
    sqnr_min_db: float,
    only: Sequence[str] = (),
) -> tuple[Signature, tuple[Verification, ...]]:
    """Run an artifact on every interpreter there is for it (see `interpreters`).

    Returns:
        The artifact's own signature, and one verification an interpreter.

    Raises:
        ParityError: an output is under the bar, or an interpreter refuses the artifact or dies of it; the message
            names the artifact, the interpreter and the worst output.
    """
    places = interpreters(runtime, only)
    if not places:
        raise ParityError(
            f"{variant} cannot be proven here, so it is not packaged: install one of {', '.join(INTERPRETERS[runtime])}"
        )
    checked = [_verify_on(place, artifact, variant, runtime, references, sqnr_min_db) for place in places]
    return checked[0][0], tuple(verification for _, verification in checked)


def _verify_on(
    place: Interpreter,
    artifact: Path,
    variant: str,
    runtime: RuntimeName,
    references: References,
    sqnr_min_db: float,
) -> tuple[Signature, Verification]:
    try:
        with IsolatedSession(artifact, runtime, interpreter=place.name, python=place.python) as session:
            differences = list(_differences(session, references))
            signature, version = session.signature, session.version
    except (FerrymanError, ValueError) as error:
        others = [name for name in INTERPRETERS[runtime] if name != place.name]
        advice = f"; to do without {place.name}, name those to prove it on (--interpreter)" if others else ""
        raise ParityError(f"{variant} on {place.name}: {error}{advice}") from error
    worst_set, lowest = min(enumerate(differences), key=lambda pair: min(d.sqnr_db for d in pair[1]))
    worst = min(lowest, key=lambda d: d.sqnr_db)
    if worst.sqnr_db < sqnr_min_db:
        raise ParityError(
            f"{variant} on {place.name} {version} computes something else than eager: output {worst.output} "
            f"reaches {worst.sqnr_db:.1f} dB of {sqnr_min_db:g} dB (largest error {worst.max_abs_error:.3g}, "
            f"input set {worst_set} of {len(differences)}); no package is written"
        )
    flat = [difference for one in differences for difference in one]
    agreements = [d.top1_agreement for d in flat if d.top1_agreement is not None]
    return signature, Verification(
        interpreter=place.name,
        version=version,
        vectors=len(differences),
        sqnr_db=round(worst.sqnr_db, 1),
        max_abs_error=max(d.max_abs_error for d in flat),
        top1_agreement=min(agreements) if agreements else None,
    )


def _differences(session: IsolatedSession, references: References) -> Iterator[Sequence[Difference]]:
    for inputs, outputs in zip(references.inputs, references.outputs, strict=True):
        yield compare(outputs, session.run(inputs))

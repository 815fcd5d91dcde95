"""Eager against artifact, on the real interpreters, each in a process that may crash: wrong never ships."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_unflatten

from ferryman.converter.capture import Captured
from ferryman.converter.inputs import input_sets
from ferryman.converter.reason import reason
from ferryman.runtime.compare import compare
from ferryman.runtime.contracts.errors import CallerError, FerrymanError, ModelError, ParityError
from ferryman.runtime.contracts.manifest import GoldenVector, RuntimeName, Verification
from ferryman.runtime.contracts.tensor import Array, Signature, to_tensors
from ferryman.runtime.isolated import IsolatedSession, describe_end
from ferryman.runtime.package import SQNR_LEAST_DB
from ferryman.runtime.session import INTERPRETERS, installed

PROGRAM_MIN_DB = 20.0
"""What artifacts of a rounded form must hold against the rounded program: its own operators are exact, but what stands
between them in float may tip an int8 over to the next."""
DEVICE_PYTHON = "FERRYMAN_DEVICE_PYTHON"
_BESIDE = Path(sys.prefix).parent / ".venv-device" / "bin" / "python"
_PROBE = "from ferryman.runtime.session import installed; print('ferryman', *installed('tflite'))"
_PROBE_S = 60.0
_INSTALL = f"pip install 'ferryman[tflite]' there, or name another in {DEVICE_PYTHON}"
_RANDOM_SETS = 4
_SAME_MIN_DB = 100.0
"""What eager holds against itself, with room for sums in another order."""
_DRAWN = (
    "random inputs like the example",
    "; integers lie between its least and largest: give an example whose values go together in any combination",
)


def _lower(sqnr_min_db: float) -> str:
    return f", or lower the bar (--min-sqnr, {SQNR_LEAST_DB:g} at least)" if sqnr_min_db > SQNR_LEAST_DB else ""


@dataclass(frozen=True)
class References:
    """Input sets and what eager answers to each."""

    inputs: tuple[tuple[Array, ...], ...]
    outputs: tuple[tuple[Array, ...], ...]
    program: tuple[tuple[Array, ...], ...] | None = None
    """What the rounded program answers, which rounded artifacts compute; None: eager."""
    drawn: int = 0
    """How many, at the end, are random beside calibration, of sizes it did not have. Rounded artifacts are held there
    against the program alone, since nobody calibrated for such values."""
    golden_sets: int = 2
    """How many may travel in the package: not those that came for calibration, which are someone's data."""

    def distinct(self, first: int | None = None) -> int:
        """How many of the first input sets differ from each other; None: of all."""
        return len({tuple((array.shape, array.tobytes()) for array in one) for one in self.inputs[:first]})

    def golden(self) -> tuple[GoldenVector, ...]:
        """The first few, for the package."""
        pairs = list(zip(self.inputs, self.outputs, strict=True))[: self.golden_sets]
        return tuple(GoldenVector(inputs=to_tensors(i), outputs=to_tensors(o)) for i, o in pairs)


@dataclass(frozen=True)
class Interpreter:
    """One interpreter this host can verify on."""

    name: str
    python: Path


def make_references(captured: Captured, given: Sequence[tuple[torch.Tensor, ...]] = ()) -> References:
    """Run eager over the example and other inputs; a model with state is given back as it came.

    Args:
        captured: the model.
        given: the other inputs, in place of random ones.

    Raises:
        ModelError: it fails on them, answers differently when asked again, or answers nothing finite.
    """
    name = captured.source.name
    with captured.unchanged():
        first = _eager(captured, captured.example)
    with captured.unchanged():
        drawn = list(input_sets(captured, _RANDOM_SETS))
        if given:
            sizes = {tuple(one.shape for one in several) for several in (captured.example, *given)}
            drawn = [several for several in drawn if tuple(one.shape for one in several) not in sizes]
        sets = [captured.example, *given[:_RANDOM_SETS], *drawn] if given else drawn
        outputs = [_eager(captured, one) for one in sets]
    try:
        shortfall = "".join(found.shortfall(_SAME_MIN_DB) for found in compare(first, outputs[0]))
    except ValueError as error:
        shortfall = str(error)
    if shortfall:
        raise ModelError(
            f"{name} does not answer the same twice to the same inputs ({shortfall}), so no artifact can be compared "
            "with it: it draws random numbers, keeps state outside its buffers, or was exported in training mode"
        )
    for spec, *answers in zip(captured.signature.outputs, *outputs, strict=True):
        if any(one.size for one in answers) and not any(np.isfinite(one).any() for one in answers):
            raise ModelError(
                f"{name}: output {spec.name} holds no finite number for any of {len(answers)} input sets, and nothing "
                "is proven by that; give example inputs that the model answers"
            )
    return References(
        inputs=tuple(tuple(tensor.numpy() for tensor in one) for one in sets),
        outputs=tuple(tuple(one) for one in outputs),
        drawn=len(drawn) if given else 0,
        golden_sets=1 if given else 2,
    )


def with_program(references: References, captured: Captured) -> References:
    """The same, with what a rewritten program answers."""
    run = captured.program.module(check_guards=False)
    outputs = []
    with torch.no_grad():
        for arrays in references.inputs:
            args, kwargs = tree_unflatten([torch.from_numpy(one.copy()) for one in arrays], captured.in_spec)
            outputs.append(tuple(leaf.detach().numpy() for leaf in tree_leaves(run(*args, **kwargs))))
    return replace(references, program=tuple(outputs))


def _eager(captured: Captured, inputs: tuple[torch.Tensor, ...]) -> list[Array]:
    try:
        return captured.eager(inputs)
    except ModelError:
        raise
    except Exception as error:  # someone else's code
        which, advice = ("the example inputs", "") if inputs is captured.example else _DRAWN
        raise ModelError(f"{captured.source.name} fails on {which}: {reason(error)}{advice}") from error


def interpreters(runtime: RuntimeName, only: Sequence[str] = ()) -> list[Interpreter]:
    """Where artifacts of `runtime` can be verified: this environment, then the device environment.

    The device environment (tflite-runtime and numpy < 2, which do not go with torch's numpy) is the Python named by
    FERRYMAN_DEVICE_PYTHON, else `.venv-device/bin/python` beside this environment, else none.

    Args:
        runtime: whose.
        only: where it names interpreters of this runtime, these and no others.

    Raises:
        CallerError: the device environment is no Python with ferryman and tflite-runtime, or one of `only` is not to
            be found.
        ParityError: there is none at all.
    """
    named = [name for name in INTERPRETERS[runtime] if name in only] or list(INTERPRETERS[runtime])
    found = [Interpreter(name, Path(sys.executable)) for name in installed(runtime) if name in named]
    if "tflite-runtime" in set(named) - {place.name for place in found} and (device := _device_python()):
        found.append(Interpreter("tflite-runtime", device))
    if missing := [name for name in named if name in only and name not in {place.name for place in found}]:
        raise CallerError(f"{', '.join(missing)} is not installed here; see {DEVICE_PYTHON} in the README")
    if not found:
        raise ParityError(
            f"{runtime} artifacts cannot be proven here, so none is packaged: install one of {', '.join(named)}"
        )
    return found


def _device_python() -> Path | None:
    named = os.environ.get(DEVICE_PYTHON)
    path = Path(named) if named else _BESIDE
    what = f"{DEVICE_PYTHON} names {named}" if named else f"beside this environment is {path}"
    if not path.is_file():
        if named:
            raise CallerError(f"{what}, and there is no such file")
        return None
    try:
        done = subprocess.run(
            [path.absolute(), "-P", "-c", _PROBE],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False,
        )  # fmt: skip
        words, last = done.stdout.decode(errors="replace").split(), done.stderr.decode(errors="replace").strip()
        said = f"{last.splitlines()[-1] if last else 'it said nothing'} ({describe_end(done.returncode)})"
    except subprocess.TimeoutExpired:
        words, said = [], f"it did not answer within {_PROBE_S:g} s"
    except OSError as error:
        words, said = [], str(error)
    if words[:1] != ["ferryman"]:
        raise CallerError(f"{what}, which is no Python with ferryman: {said}; {_INSTALL}")
    if "tflite-runtime" not in words:
        raise CallerError(f"{what}, which has no tflite-runtime; {_INSTALL}")
    return path.absolute()


def verify(
    artifact: Path,
    variant: str,
    runtime: RuntimeName,
    references: References,
    sqnr_min_db: float,
    places: Sequence[Interpreter] | None = None,
    entry: str | None = None,
) -> tuple[Signature, tuple[Verification, ...]]:
    """Run an artifact, or one `entry` of it, on every interpreter there is for it (see `interpreters`) or `places`.

    Returns:
        The artifact's own signature, and one verification an interpreter.

    Raises:
        ParityError: an output is under the bar, or an interpreter refuses the artifact or dies of it; the message
            names the artifact, the interpreter and the worst output.
    """
    if places is None:
        places = interpreters(runtime)
    checked = [_verify_on(place, artifact, variant, runtime, references, sqnr_min_db, entry) for place in places]
    return checked[0][0], tuple(verification for _, verification in checked)


def _verify_on(
    place: Interpreter,
    artifact: Path,
    variant: str,
    runtime: RuntimeName,
    references: References,
    sqnr_min_db: float,
    entry: str | None,
) -> tuple[Signature, Verification]:
    try:
        with IsolatedSession(artifact, runtime, interpreter=place.name, python=place.python, entry=entry) as session:
            answers = [session.run(inputs) for inputs in references.inputs]
            differences = [compare(*pair) for pair in zip(references.outputs, answers, strict=True)]
            if references.program is not None:
                differences = differences[: len(differences) - references.drawn]
            exact = [compare(*pair) for pair in zip(references.program or (), answers, strict=False)]
            signature, version = session.signature, session.version
    except (FerrymanError, ValueError) as error:
        others = [name for name in INTERPRETERS[runtime] if name != place.name]
        advice = f"; to do without {place.name}, name those to prove it on (--interpreter)" if others else ""
        raise ParityError(f"{variant} on {place.name}: {error}{advice}") from error
    worst_set, lowest = min(enumerate(differences), key=lambda pair: min(d.sqnr_db for d in pair[1]))
    worst = min(lowest, key=lambda d: d.sqnr_db)
    if exact and (
        shortfall := min((d for one in exact for d in one), key=lambda d: d.sqnr_db).shortfall(PROGRAM_MIN_DB)
    ):
        raise ParityError(
            f"{variant} on {place.name} {version} computes something else than the rounded program: {shortfall}; "
            "no package is written"
        )
    if shortfall := worst.shortfall(sqnr_min_db):
        found = f"{shortfall} (largest error {worst.max_abs_error:.3g}, input set {worst_set} of {len(differences)})"
        if exact:
            raise ParityError(
                f"{variant} on {place.name} {version} is what was asked for, but rounding loses too much: {found}; "
                "calibrate it with inputs like those it will see, give it more bits, train it with compress"
                f"{_lower(sqnr_min_db)}; no package is written"
            )
        raise ParityError(
            f"{variant} on {place.name} {version} computes something else than eager: {found}; no package is written"
        )
    flat = [difference for one in differences for difference in one]
    agreements = [d.top1_agreement for d in flat if d.top1_agreement is not None]
    return signature, Verification(
        interpreter=place.name,
        version=version,
        vectors=len(differences),
        distinct=references.distinct(len(differences)),
        sqnr_db=round(worst.sqnr_db, 1),
        max_abs_error=max(d.max_abs_error for d in flat),
        top1_agreement=min(agreements) if agreements else None,
    )

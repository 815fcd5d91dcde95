"""The stages from a module to a package, top to bottom."""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from ferryman.converter.backends import BACKENDS
from ferryman.converter.backends.base import Lowered
from ferryman.converter.capture import Captured, capture
from ferryman.converter.forms import Batches, Form, find_form
from ferryman.converter.honest import Compared, compare_forms
from ferryman.converter.memory_estimate import activations_peak_bytes
from ferryman.converter.quantize.bit_operations import bit_operations
from ferryman.converter.quantize.calibration import read_calibration
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quiet import alone, quiet
from ferryman.converter.shared import SharedWeight, shared_weights
from ferryman.converter.source import Source, load_source, make_source
from ferryman.converter.sparse.measure import LayerTime
from ferryman.converter.verify import Interpreter, References, interpreters, make_references, verify, with_program
from ferryman.runtime import kernels
from ferryman.runtime.compare import SQNR_CAP_DB
from ferryman.runtime.contracts.errors import CallerError, ModelError, ParityError
from ferryman.runtime.contracts.manifest import Manifest, Requirements, RuntimeName, Variant, Verification
from ferryman.runtime.package import PACKAGE_SUFFIX, SQNR_LEAST_DB, check_name, open_package, write_package
from ferryman.runtime.session import INTERPRETERS

_DEVICE_ROOM_DB = 3.0
"""By how much a rounded form may do worse on a device than here."""
_TOOLS = ("ferryman", "torch", "executorch", "litert-torch", "ai-edge-litert", "numpy")


@dataclass(frozen=True)
class Conversion:
    """A finished package, and where the time went."""

    path: Path
    sha256: str
    manifest: Manifest
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    compared: tuple[Compared, ...] = ()
    """Each compressed form's artifacts beside the fp32 ones, on each interpreter of this machine."""
    layer_times: tuple[LayerTime, ...] = ()
    """Of form `sparse`: each layer with zeros alone, on one interpreter of each runtime."""
    shared: tuple[SharedWeight, ...] = ()
    """Weights that several layers read; every artifact holds them once."""


class _Clock:
    """Announces stages and keeps their durations."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@alone()
def convert(
    model: Any,  # noqa: ANN401  # an nn.Module, or text; torch is imported only now
    inputs: Any = None,  # noqa: ANN401  # see make_source
    *,
    to: Sequence[RuntimeName] = ("executorch", "tflite"),
    output: Path | str = ".",
    form: str | Recipe | Sequence[str | Recipe] = "fp32",
    calibration: Any = None,  # noqa: ANN401  # an iterable of inputs, or text
    strict: bool = False,
    name: str | None = None,
    dynamic_shapes: Any = None,  # noqa: ANN401  # torch's own type is Any
    sqnr_min_db: float | None = None,
    interpreters: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Conversion:
    """Lower a model to each runtime, prove every artifact against eager, and write one package.

    Args:
        model: an `nn.Module` in eval mode, or SOURCE as the command line takes it (it brings its own `inputs` and
            `dynamic_shapes`).
        inputs: the example call for an `nn.Module`: a tensor, a tuple of positional or a dict of keyword arguments.
        to: runtimes.
        output: a folder; the package is `<name>.ferry` in it.
        form: the form or forms; each makes a variant for each runtime (see `forms` and `quantize.recipe`).
        calibration: inputs by which quantized forms learn how far activations range: an iterable of what `inputs` may
            be, or SOURCE of a factory that gives one; None: the example alone.
        strict: refuse a compressed form that is not smaller than fp32, or slower, on any interpreter.
        name: of the package; None takes the factory's, file's or class's.
        dynamic_shapes: as `torch.export.export` takes it.
        sqnr_min_db: the bar every output must hold; None takes the form's.
        interpreters: prove on these of a runtime's only, and let the package run on no others; empty: all found.
        progress: told what begins.

    Raises:
        CallerError: SOURCE, a runtime or the form is not known, an interpreter is not here, the folder cannot be
            written, or another argument is out of its range.
        ModelError: the model cannot be run, captured or lowered.
        ParityError: an artifact computes something else than eager, or with `strict` is no gain; no package is written.
    """
    forms = _forms(form, sqnr_min_db)
    places = _places(to, interpreters)
    _check_folder(Path(output))
    clock = _Clock(progress)

    with clock.stage("load"), quiet():
        source = _source(model, inputs, dynamic_shapes, name)
        name = check_name(name or source.name)
        if any(one.name == "fp32" for one in forms):
            _check_floats(source)
    with clock.stage("capture"), quiet():
        captured = capture(source)
        batches = read_calibration(captured, calibration)
    with clock.stage("run eager"):
        references = make_references(captured, batches if calibration is not None else ())
    base: dict[RuntimeName, Lowered] = {}
    for runtime in places:  # what every other form is compared with
        with clock.stage(f"lower fp32 to {runtime}"), quiet():
            base[runtime] = BACKENDS[runtime].lower(captured)
    work = _Work(captured, batches, references, base, places, clock)
    made, failed = [], {}
    for wanted in forms:
        try:
            made += list(work.make(wanted))
        except (ModelError, ParityError) as error:
            if len(forms) == 1:
                raise
            failed[wanted.name] = error
            progress(f"{wanted.name} failed: {error}")
    if failed:
        good = [form.name for form in forms if form.name not in failed]
        raise type(next(iter(failed.values())))(
            f"{name}: {', '.join(failed)} failed, and {', '.join(good) or 'nothing'} would do: "
            + "; ".join(f"{form}: {error}" for form, error in failed.items())
        )
    complaints = [complaint for one in made for compared in one.compared for complaint in compared.complaints]
    if strict and complaints:
        raise ParityError(f"{name}: {'; '.join(complaints)}; no package is written, as --strict asks")
    with clock.stage("package"):
        path = Path(output) / f"{name}{PACKAGE_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            sha256 = write_package(
                path,
                name=name,
                signature=captured.signature,
                variants=[one.variant for one in made],
                artifacts={one.variant.payload: one.data for one in made},
                golden=references.golden(),
                golden_sqnr_min_db=max(one.sqnr_min_db for one in forms),
                created_with={"python": platform.python_version(), **{tool: metadata.version(tool) for tool in _TOOLS}},
            )
        except OSError as error:
            raise CallerError(
                f"{path} cannot be written: {error.strerror}; make room, or name another output"
            ) from error
        with open_package(path) as package:
            manifest = package.manifest
    return Conversion(
        path=path,
        sha256=sha256,
        manifest=manifest,
        seconds=clock.seconds,
        compared=tuple(compared for one in made for compared in one.compared),
        layer_times=tuple(time for one in made for time in one.layer_times),
        shared=shared_weights(captured),
    )


def _forms(wanted: str | Recipe | Sequence[str | Recipe], sqnr_min_db: float | None) -> list[Form]:
    several = [wanted] if isinstance(wanted, str | Recipe) else wanted
    if not isinstance(several, Sequence) or not all(isinstance(one, str | Recipe) for one in several):
        raise CallerError(f"form is a name or a Recipe, or several; found {wanted!r}")
    forms = [find_form(one) for one in several]
    names = [form.name for form in forms]
    if not names or len(set(names)) != len(names):
        raise CallerError(f"forms must be at least one, and different ones; found {names}")
    if sqnr_min_db is None:
        return forms
    if not SQNR_LEAST_DB <= sqnr_min_db <= SQNR_CAP_DB:
        raise CallerError(f"the bar must be {SQNR_LEAST_DB:g} to {SQNR_CAP_DB:g} dB, found {sqnr_min_db:g}")
    return [dataclasses.replace(form, sqnr_min_db=sqnr_min_db) for form in forms]


def _places(to: Sequence[RuntimeName], named: Sequence[str]) -> dict[RuntimeName, list[Interpreter]]:
    if not to or not set(to) <= set(BACKENDS):
        raise CallerError(f"runtimes are one or more of {', '.join(BACKENDS)}; found {list(to)}")
    if unknown := set(named) - {name for names in INTERPRETERS.values() for name in names}:
        there = ", ".join(name for names in INTERPRETERS.values() for name in names)
        raise CallerError(f"interpreter {', '.join(sorted(unknown))} is not known; there are: {there}")
    return {runtime: interpreters(runtime, named) for runtime in dict.fromkeys(to)}


@dataclass(frozen=True)
class _Made:
    """A proven variant."""

    variant: Variant
    data: bytes
    compared: tuple[Compared, ...] = ()
    layer_times: tuple[LayerTime, ...] = ()


@dataclass(frozen=True)
class _Work:
    """What every form of a model is made from."""

    captured: Captured
    batches: Batches
    references: References
    base: dict[RuntimeName, Lowered]
    """The model in fp32."""
    places: dict[RuntimeName, list[Interpreter]]
    clock: _Clock

    def make(self, form: Form) -> Iterator[_Made]:
        """One variant a runtime."""
        if form.name == "fp32":
            for runtime, lowered in self.base.items():
                yield _Made(self._prove(form, runtime, lowered, self.references), lowered.data)
            return
        with self.clock.stage(f"make {form.name}"), quiet():
            program, layers = form.rewrite(self.captured, self.batches)
            references = with_program(self.references, program) if form.rounds else self.references
            whole = bit_operations(self.captured) if form.rounds else 0
            counted = bit_operations(self.captured, layers) / whole if whole else None
        for runtime, base in self.base.items():
            times: tuple[LayerTime, ...] = ()
            if form.fit:
                with self.clock.stage(f"measure the layers of {form.name} on {runtime}"), quiet():
                    fitted = form.fit(program, runtime, self.places[runtime][0])
                lowered, layers, times = fitted.lowered, fitted.layers, fitted.times
            else:
                with self.clock.stage(f"lower {form.name} to {runtime}"), quiet():
                    lowered = BACKENDS[runtime].lower(program)
            variant = replace(self._prove(form, runtime, lowered, references), layers=layers)
            with self.clock.stage(f"time {form.name} on {runtime} beside fp32"):
                compared = compare_forms(
                    variant,
                    (base.data, lowered.data),
                    BACKENDS[runtime].suffix,
                    references.inputs[0],
                    self.places[runtime],
                    bit_operations=counted,
                    asked_db=form.asked_db,
                )
            yield _Made(variant, lowered.data, tuple(compared), times)

    def _prove(self, form: Form, runtime: RuntimeName, lowered: Lowered, references: References) -> Variant:
        with self.clock.stage(f"verify {form.name} on {runtime}"):
            return _prove(self.captured, runtime, form, lowered, references, self.places[runtime])


def _check_folder(folder: Path) -> None:
    """See that a package can be written there, without making anything yet.

    Raises:
        CallerError: it cannot.
    """
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise CallerError(f"no package can be written into {folder}: {there} is no folder; name another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CallerError(f"no package can be written into {folder}: {there} is not writable; name another output")


def _check_floats(source: Source) -> None:
    """Refuse to call fp32 what computes in less.

    Raises:
        ModelError: a parameter or buffer is a smaller float.
    """
    for name, tensor in (*source.module.named_parameters(), *source.module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{source.name}: form fp32 is float32, and {name} is {dtype}: call .float() on the module, and on its "
                "inputs"
            )


def _source(model: Any, inputs: Any, dynamic_shapes: Any, name: str | None) -> Source:  # noqa: ANN401  # see convert
    if not isinstance(model, (str, os.PathLike)):
        return make_source(model, inputs, dynamic_shapes=dynamic_shapes, name=name)
    if inputs is not None or dynamic_shapes is not None:
        raise CallerError(f"{model} brings its own inputs and dynamic shapes; give these with an nn.Module only")
    return load_source(os.fspath(model))


def _prove(
    captured: Captured,
    runtime: RuntimeName,
    form: Form,
    artifact: Lowered,
    references: References,
    places: Sequence[Interpreter],
) -> Variant:
    name = f"{runtime}-{form.name}"
    backend = BACKENDS[runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{backend.suffix}"
        path.write_bytes(artifact.data)
        signature, verified = verify(path, name, runtime, references, form.sqnr_min_db, places)
    return Variant(
        name=name,
        form=form.name,
        runtime=runtime,
        payload=f"artifacts/{form.name}{backend.suffix}",
        signature=signature,
        requires=Requirements(
            interpreters={v.interpreter: v.version for v in verified},
            operators=kernels.VERSION if artifact.lowering.kernels else 0,
            memory_estimate_bytes=2 * len(artifact.data) + activations_peak_bytes(captured),
        ),
        lowering=artifact.lowering,
        verified=verified,
        sqnr_min_db=_device_bar(verified) if form.rounds else None,
    )


def _device_bar(verified: Sequence[Verification]) -> float:
    return max(SQNR_LEAST_DB, min(one.sqnr_db for one in verified) - _DEVICE_ROOM_DB)

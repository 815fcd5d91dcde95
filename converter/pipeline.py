"""The stages from a module to a package, top to bottom."""

from __future__ import annotations

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
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.memory_estimate import activations_peak_bytes
from ferryman.converter.quiet import alone, quiet
from ferryman.converter.source import Source, load_source, make_source
from ferryman.converter.verify import SQNR_MIN_DB, Interpreter, References, make_references, verify
from ferryman.converter.verify import interpreters as places_for
from ferryman.runtime import kernels
from ferryman.runtime.compare import SQNR_CAP_DB
from ferryman.runtime.contracts.errors import CallerError, ModelError
from ferryman.runtime.contracts.manifest import LayerForm, Manifest, Requirements, RuntimeName, Variant
from ferryman.runtime.package import PACKAGE_SUFFIX, SQNR_LEAST_DB, check_name, open_package, write_package
from ferryman.runtime.session import INTERPRETERS

_TOOLS = ("ferryman", "torch", "executorch", "litert-torch", "ai-edge-litert", "numpy")


@dataclass(frozen=True)
class Conversion:
    """A finished package, and where the time went."""

    path: Path
    sha256: str
    manifest: Manifest
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds."""


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
    form: str = "fp32",
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
        form: the compressed form.
        name: of the package; None takes the factory's, file's or class's.
        dynamic_shapes: as `torch.export.export` takes it.
        sqnr_min_db: the bar every output must hold; None takes the form's.
        interpreters: prove on these of a runtime's only, and let the package run on no others; empty: all found.
        progress: told what begins.

    Raises:
        CallerError: SOURCE, a runtime or the form is not known, an interpreter is not here, the folder cannot be
            written, or another argument is out of its range.
        ModelError: the model cannot be run, captured or lowered.
        ParityError: an artifact computes something else than eager; no package is written.
    """
    if form not in SQNR_MIN_DB:
        raise CallerError(f"form {form!r} is not known; there are: {', '.join(SQNR_MIN_DB)}")
    if not to or not set(to) <= set(BACKENDS):
        raise CallerError(f"runtimes are one or more of {', '.join(BACKENDS)}; found {list(to)}")
    if unknown := set(interpreters) - {name for names in INTERPRETERS.values() for name in names}:
        there = ", ".join(name for names in INTERPRETERS.values() for name in names)
        raise CallerError(f"interpreter {', '.join(sorted(unknown))} is not known; there are: {there}")
    bar_db = SQNR_MIN_DB[form] if sqnr_min_db is None else sqnr_min_db
    if not SQNR_LEAST_DB <= bar_db <= SQNR_CAP_DB:
        raise CallerError(f"the bar must be {SQNR_LEAST_DB:g} to {SQNR_CAP_DB:g} dB, found {bar_db:g}")
    places = {runtime: places_for(runtime, interpreters) for runtime in dict.fromkeys(to)}
    _check_folder(Path(output))
    clock = _Clock(progress)

    with clock.stage("load"), quiet():
        source = _source(model, inputs, dynamic_shapes, name)
        name = check_name(name or source.name)
        if form == "fp32":
            _check_floats(source)
    with clock.stage("capture"), quiet():
        captured = capture(source)
    with clock.stage("run eager"):
        references = make_references(captured)
    layers: tuple[LayerForm, ...] = ()
    if form == "binary":
        with clock.stage("find binary layers"), quiet():
            captured, layers = lower_binary(captured)
    lowered: dict[RuntimeName, Lowered] = {}
    for runtime in places:
        with clock.stage(f"lower to {runtime}"), quiet():
            lowered[runtime] = BACKENDS[runtime].lower(captured)
    variants = []
    for runtime, artifact in lowered.items():
        with clock.stage(f"verify {runtime}"):
            variant = _prove(captured, runtime, form, artifact, references, bar_db, places[runtime])
            variants.append(replace(variant, layers=layers))
    with clock.stage("package"):
        path = Path(output) / f"{name}{PACKAGE_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        sha256 = write_package(
            path,
            name=name,
            signature=captured.signature,
            variants=variants,
            artifacts={v.payload: lowered[v.runtime].data for v in variants},
            golden=references.golden(),
            golden_sqnr_min_db=bar_db,
            created_with={"python": platform.python_version(), **{tool: metadata.version(tool) for tool in _TOOLS}},
        )
        with open_package(path) as package:
            manifest = package.manifest
    return Conversion(path=path, sha256=sha256, manifest=manifest, seconds=clock.seconds)


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
    form: str,
    artifact: Lowered,
    references: References,
    bar_db: float,
    places: Sequence[Interpreter],
) -> Variant:
    name = f"{runtime}-{form}"
    backend = BACKENDS[runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{backend.suffix}"
        path.write_bytes(artifact.data)
        signature, verified = verify(path, name, runtime, references, bar_db, places)
    return Variant(
        name=name,
        form=form,
        runtime=runtime,
        payload=f"artifacts/{form}{backend.suffix}",
        signature=signature,
        requires=Requirements(
            interpreters={v.interpreter: v.version for v in verified},
            operators=kernels.VERSION if artifact.lowering.kernels else 0,
            memory_estimate_bytes=2 * len(artifact.data) + activations_peak_bytes(captured),
        ),
        lowering=artifact.lowering,
        verified=verified,
    )

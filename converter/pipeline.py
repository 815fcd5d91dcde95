"""The stages from a module to a package, top to bottom."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ferryman.converter.backends import BACKENDS
from ferryman.converter.backends.base import Lowered
from ferryman.converter.capture import capture
from ferryman.converter.forms import Form, find_form
from ferryman.converter.honest import Compared
from ferryman.converter.quantize.calibration import read_calibration
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quiet import alone, quiet
from ferryman.converter.shared import SharedWeight, shared_weights
from ferryman.converter.source import Source, load_sources, make_sources
from ferryman.converter.sparse.measure import LayerTime
from ferryman.converter.variants import Clock, Entry, Member, Work, check_alike, lower_together
from ferryman.converter.verify import Interpreter, interpreters, make_references
from ferryman.runtime.compare import SQNR_CAP_DB
from ferryman.runtime.contracts.errors import CallerError, ModelError, ParityError
from ferryman.runtime.contracts.manifest import Manifest, RuntimeName
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
    compared: tuple[Compared, ...] = ()
    """Each compressed form's artifacts beside the fp32 ones, on each interpreter of this machine."""
    layer_times: tuple[LayerTime, ...] = ()
    """Of form `sparse`: each layer with zeros alone, on one interpreter of each runtime."""
    shared: tuple[SharedWeight, ...] = ()
    """Weights that several layers read; every artifact holds them once."""

    @property
    def complaints(self) -> list[str]:
        """What compressed forms are for and do not give, on each interpreter; being slower than fp32 is one."""
        return _complaints(self.compared)

    @property
    def notes(self) -> list[str]:
        """Complaints, and what else to know of the numbers."""
        return [*self.complaints, *(one.caution for one in self.compared if one.caution)]


@alone()
def convert(
    model: Any,  # noqa: ANN401  # an nn.Module, several, or text; torch is imported only now
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
            `dynamic_shapes`). Several modules of one signature, in a dict by name, become variants of one package: each
            artifact holds all of them, and the weights that they share once (see `nest`).
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
    clock = Clock(progress)

    with clock.stage("load"), quiet():
        sources = _sources(model, inputs, dynamic_shapes, name)
        name = check_name(name or next(iter(sources.values())).name)
        _check_forms(forms, sources)
    with clock.stage("capture"), quiet():
        captured = {entry: capture(source) for entry, source in sources.items()}
        check_alike(captured)
        batches = {entry: read_calibration(one, calibration) for entry, one in captured.items()}
    with clock.stage("run eager"):
        members = {
            entry: Member(one, batches[entry], make_references(one, batches[entry] if calibration is not None else ()))
            for entry, one in captured.items()
        }
    base: dict[RuntimeName, dict[Entry, Lowered]] = {}
    for runtime in places:  # what every other form is compared with
        with clock.stage(f"lower fp32 to {runtime}"), quiet():
            base[runtime] = lower_together(runtime, captured)
    work = Work(members, base, places, clock)
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
    complaints = _complaints([compared for one in made for compared in one.compared])
    if strict and complaints:
        raise ParityError(f"{name}: {'; '.join(complaints)}; no package is written, as --strict asks")
    whole = next(iter(members.values()))
    with clock.stage("package"):
        path = Path(output) / f"{name}{PACKAGE_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            sha256 = write_package(
                path,
                name=name,
                signature=whole.captured.signature,
                variants=[one.variant for one in made],
                artifacts={one.variant.payload: one.data for one in made} | work.own_golden(),
                golden=whole.references.golden(),
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
        shared=shared_weights(whole.captured),
    )


def _complaints(found: Sequence[Compared]) -> list[str]:
    return [complaint for one in found for complaint in one.complaints]


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


def _check_forms(forms: Sequence[Form], sources: Mapping[Entry, Source]) -> None:
    """See that models can be in these forms.

    Raises:
        CallerError, ModelError: one cannot.
    """
    if any(one.name == "fp32" for one in forms):
        for source in sources.values():
            _check_floats(source)
    if None not in sources and (measured := [one.name for one in forms if one.fit]):
        raise CallerError(
            f"form {measured[0]} is measured one program at a time, so several cannot share an artifact in it; "
            "convert each by itself"
        )


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


def _sources(model: Any, inputs: Any, dynamic_shapes: Any, name: str | None) -> dict[Entry, Source]:  # noqa: ANN401  # see convert
    if not isinstance(model, (str, os.PathLike)):
        return make_sources(model, inputs, dynamic_shapes=dynamic_shapes, name=name)
    if inputs is not None or dynamic_shapes is not None:
        raise CallerError(f"{model} brings its own inputs and dynamic shapes; give these with an nn.Module only")
    return load_sources(os.fspath(model))

"""One way to run an artifact, whatever interpreter runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ferryman.runtime.cache import Cache, CacheUse
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.contracts.tensor import Array, Signature, TensorSpec


class Session(Protocol):
    """An artifact, loaded and ready; used by one thread at a time, closed by `with` or `close`."""

    @property
    def interpreter(self) -> str:
        """Name of the interpreter: executorch, ai-edge-litert, tflite-runtime."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def cache(self) -> CacheUse:
        """What became of packed weights when it was opened."""

    @property
    def signature(self) -> Signature:
        """The artifact's own names, dtypes and shapes, in call order."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference; the arrays returned are the caller's own.

        Raises:
            CallerError: count, dtype or shape is not the signature's.
            RuntimeFault: the interpreter failed; the message is its own.
        """

    def close(self) -> None:
        """Free everything; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


INTERPRETERS: dict[RuntimeName, tuple[str, ...]] = {
    "executorch": ("executorch",),
    "tflite": ("ai-edge-litert", "tflite-runtime"),
}
"""Interpreters of each runtime, the preferred one first."""


def interpreters_of(runtime: RuntimeName) -> tuple[str, ...]:
    """INTERPRETERS[runtime].

    Raises:
        CallerError: there is no such runtime.
    """
    if not isinstance(runtime, str) or runtime not in INTERPRETERS:
        raise CallerError(f"there is no runtime {runtime!r}; there are: {', '.join(INTERPRETERS)}")
    return INTERPRETERS[runtime]


def fit(inputs: Sequence[Array], signature: Signature) -> list[Array]:
    """Check `inputs` against `signature` and make them C-contiguous.

    Integers may narrow when every value fits; lists and numbers, which have no dtype, take the signature's.

    Raises:
        CallerError: wrong count, dtype or shape, or a value that the artifact's integer type cannot hold.
    """
    if len(inputs) != len(signature.inputs):
        expected = ", ".join(spec.describe() for spec in signature.inputs)
        raise CallerError(f"expected {len(signature.inputs)} inputs ({expected}), found {len(inputs)}")
    sizes: dict[str, int] = {}
    return [_fit_one(as_array(one, spec), spec, sizes) for one, spec in zip(inputs, signature.inputs, strict=True)]


def exactly(inputs: Sequence[Array], wanted: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> bool:
    """Whether all are C-contiguous arrays of these dtypes and shapes: what `fit` would give back as it is.

    The common case, told in a fraction of the time that `fit` takes.
    """
    if len(inputs) != len(wanted):
        return False
    for array, (dtype, shape) in zip(inputs, wanted):  # noqa: B905  # counted above; strict costs time
        if (
            type(array) is not np.ndarray
            or array.dtype is not dtype
            or array.shape != shape
            or not array.flags.c_contiguous
        ):
            return False
    return True


def as_array(given: Any, spec: TensorSpec) -> Array:  # noqa: ANN401  # whatever numpy can make an array of
    """An array as it is; anything else as numpy sees it, its numbers in the dtype of a floating `spec`.

    Raises:
        CallerError: numpy sees no array of numbers in it.
    """
    if isinstance(given, np.ndarray):
        return given
    try:
        array = np.asarray(given)
    except ValueError as error:  # a ragged list
        raise CallerError(f"input {spec.name}: expected {spec.describe()}, found no array: {error}") from error
    floating = np.dtype(spec.dtype).kind == "f" and array.dtype.kind in "iuf"
    return array.astype(spec.dtype) if floating else array


def _fit_one(array: Array, spec: TensorSpec, sizes: dict[str, int]) -> Array:
    wanted = np.dtype(spec.dtype)
    if array.dtype != wanted:
        array = _narrow(array, wanted, spec)
    if not shape_fits(array.shape, spec, sizes):
        raise CallerError(f"input {spec.name}: expected {spec.describe()}, found shape {list(array.shape)}")
    return np.ascontiguousarray(array).reshape(array.shape)


def shape_fits(shape: Sequence[int], spec: TensorSpec, sizes: dict[str, int]) -> bool:
    """Whether a shape is one that `spec` allows; `sizes` keeps the sizes of its symbols from one tensor to the next."""
    return len(shape) == len(spec.shape) and all(
        have == dim
        if isinstance(dim, int)
        else dim.min <= have <= dim.max and sizes.setdefault(dim.symbol, have) == have
        for have, dim in zip(shape, spec.shape, strict=True)
    )


def _narrow(array: Array, wanted: np.dtype[np.generic], spec: TensorSpec) -> Array:
    if not (np.issubdtype(array.dtype, np.integer) and np.issubdtype(wanted, np.integer)):
        raise CallerError(f"input {spec.name}: expected {spec.describe()}, found dtype {array.dtype}")
    bounds = np.iinfo(wanted)  # type: ignore[type-var]  # the line above made sure it is an integer type
    if array.size and (int(array.min()) < bounds.min or int(array.max()) > bounds.max):
        raise CallerError(
            f"input {spec.name}: the artifact takes {spec.dtype}, and a value lies outside {bounds.min}..{bounds.max}"
        )
    return array.astype(wanted)


def installed(runtime: RuntimeName) -> dict[str, str]:
    """Interpreters of `runtime` on this machine, preferred first: name -> version."""
    return {name: version for name in INTERPRETERS[runtime] if (version := _VERSIONS[name]()) is not None}


def open_session(
    artifact: Path | str,
    runtime: RuntimeName,
    *,
    interpreter: str | None = None,
    threads: int = 1,
    entry: str | None = None,
    cache: Path | str | None = None,
    sha256: str | None = None,
) -> Session:
    """Load an artifact.

    Args:
        artifact: a `.pte` or `.tflite` file; it must stay in place while the session is open (it is mapped).
        runtime: which of the two it is.
        interpreter: one of INTERPRETERS[runtime]; None takes the first that is installed.
        threads: how many the interpreter may use.
        entry: what to run of an artifact that holds several: a method of a `.pte`, a signature of a `.tflite`. None:
            the only one; of several, `forward` of a `.pte` and the first of a `.tflite`.
        cache: a folder of the caller's own, for packed weights of executorch and ai-edge-litert, so that the next start
            need not pack them again; it is made if need be, and bounded. None: nothing is written.
        sha256: of the artifact, from whoever has just checked it; the cache then finds it wherever its file is.

    Raises:
        CallerError: no such file, runtime, interpreter or entry, or threads < 1.
        DeviceError: the interpreter is not installed.
        RuntimeFault: the interpreter does not take the artifact.
    """
    if threads < 1:
        raise CallerError(f"threads must be at least 1, found {threads}")
    if entry is not None and (not isinstance(entry, str) or "\0" in entry):
        raise CallerError(f"an entry is named with text, found {entry!r}")
    artifact = Path(artifact)
    if not artifact.is_file():
        raise CallerError(f"there is no file {artifact}")
    names = interpreters_of(runtime)
    if interpreter is None:
        have = installed(runtime)
        if not have:
            raise DeviceError(
                f"no interpreter for {runtime} artifacts is installed; install one of: {', '.join(names)}"
            )
        interpreter = next(iter(have))
    if interpreter not in names:
        raise CallerError(f"{interpreter!r} does not run {runtime} artifacts; those that do: {', '.join(names)}")
    return _OPENERS[interpreter](artifact, threads, entry, None if cache is None else Cache(Path(cache), sha256))


def import_interpreter(name: str) -> None:
    """Bring an interpreter's libraries into the process, so that what comes after is the artifact's own cost.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    _IMPORTERS[name]()


def _distribution_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _open_executorch(artifact: Path, threads: int, entry: str | None, cache: Cache | None) -> Session:
    from ferryman.runtime.sessions import executorch

    return executorch.open_session(artifact, threads=threads, entry=entry, cache=cache)


def _open_tflite(interpreter: str, artifact: Path, threads: int, entry: str | None, cache: Cache | None) -> Session:
    from ferryman.runtime.sessions import tflite

    return tflite.open_session(artifact, interpreter=interpreter, threads=threads, entry=entry, cache=cache)


def _import_executorch() -> None:
    from ferryman.runtime.sessions import executorch

    executorch.load()


def _import_tflite(name: str) -> None:
    from ferryman.runtime.sessions import compiled, tflite

    tflite.load(name)
    if name == compiled.INTERPRETER and compiled.runs_here():
        compiled.load()


def _executorch_version() -> str | None:
    from ferryman.runtime.sessions import executorch

    return executorch.version()


# Interpreters are imported when one is opened: a device has only some of them, and each costs memory.
_OPENERS: dict[str, Callable[[Path, int, str | None, Cache | None], Session]] = {
    "executorch": _open_executorch,
    "ai-edge-litert": partial(_open_tflite, "ai-edge-litert"),
    "tflite-runtime": partial(_open_tflite, "tflite-runtime"),
}
_IMPORTERS: dict[str, Callable[[], None]] = {
    "executorch": _import_executorch,
    "ai-edge-litert": partial(_import_tflite, "ai-edge-litert"),
    "tflite-runtime": partial(_import_tflite, "tflite-runtime"),
}
_VERSIONS: dict[str, Callable[[], str | None]] = {
    "executorch": _executorch_version,
    "ai-edge-litert": partial(_distribution_version, "ai-edge-litert"),
    "tflite-runtime": partial(_distribution_version, "tflite-runtime"),
}

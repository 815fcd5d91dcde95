"""Run a package's golden vectors on this device, each variant in a process that may crash."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from ferryman.runtime import kernels
from ferryman.runtime.compare import compare, worst
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError, ParityError
from ferryman.runtime.contracts.manifest import GoldenVector, Manifest, Variant
from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.tensor import Array, Signature
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import read_golden
from ferryman.runtime.session import fit, installed, shape_fits

_CALLS_MOST = 200
_BUDGET_NS = 300_000_000
"""What timing a variant may take, about."""


class GoldenResult(Record):
    """One variant on one interpreter of this device."""

    variant: str
    interpreter: str
    version: str
    sqnr_db: float
    latency_ns: int | None = None
    """Of a call with the first vector on one thread, the shortest of a few, which other work disturbs least; None: of
    an older ferryman."""
    memory_bytes: int | None = None
    """Of the process that ran it, after that, what is its alone (USS); None: the kernel does not tell."""
    energy_j: float | None = None
    """Of a call, above idle; None: nobody measured it."""


def usable_interpreters(variant: Variant) -> dict[str, str]:
    """Interpreters of this device on which the variant is proven: name -> version, preferred first.

    None where the processor lacks an instruction set that the variant needs, or this ferryman an operator.
    """
    if variant.requires.isa and not set(variant.requires.isa) <= instruction_sets(CPUINFO.read_text()):
        return {}
    if missing_operators(variant):
        return {}
    return proven_among(variant, installed(variant.runtime))


def proven_among(variant: Variant, versions: Mapping[str, str]) -> dict[str, str]:
    """Those of some interpreters (name -> version) on which the variant is proven, in their order."""
    return {
        name: version
        for name, version in versions.items()
        if name in variant.requires.interpreters and at_least(version, variant.requires.interpreters[name])
    }


def missing_operators(variant: Variant, have: int | None = None) -> str:
    """What the variant needs of ferryman's own operators and a device has not; empty when nothing.

    Args:
        variant: of a package.
        have: their version there, 0 of a device without; None: of this device.
    """
    have = kernels.version() or 0 if have is None else have
    if variant.requires.operators <= have:
        return ""
    found = f"version {have}" if have else "none"
    return f"ferryman's operators of version {variant.requires.operators}, found {found} (install a newer ferryman)"


class ProvingSession(Protocol):
    """What proving a variant takes of a session."""

    version: str
    memory_after: Memory | Unavailable

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


S = TypeVar("S", bound=ProvingSession)


@dataclass(frozen=True)
class Prover(Generic[S]):
    """Where variants are proven."""

    usable: Callable[[Variant], Mapping[str, str]]
    """Interpreters there that may run a variant: name -> version."""
    open: Callable[[Path, Variant, str], S]
    """Of an artifact, a variant and an interpreter."""
    time: Callable[[list[Array], S], int]
    """The shortest of a few calls, in nanoseconds."""


def check_golden(directory: Path, manifest: Manifest, prover: Prover[Any] | None = None) -> tuple[GoldenResult, ...]:
    """Run every variant on every interpreter this device has for it.

    Args:
        directory: holds the payloads under their manifest paths.
        manifest: of the package.
        prover: None: this device, each variant in a process of its own.

    Raises:
        ParityError: a variant misses the manifest's bar.
        RuntimeFault: an interpreter refuses a variant.
        RuntimeCrash: an interpreter died.
        DeviceError: the device can run none of the variants.
        PackageError: a golden vector is malformed, is not what the signature says, or proves nothing; or a payload has
            not the entry that a variant names.
    """
    prover = prover or Prover(usable_interpreters, _open, _time)
    vectors = {
        paths: _read_vectors(directory, paths, manifest)
        for paths in {manifest.golden, *(variant.golden or manifest.golden for variant in manifest.variants)}
    }
    results = tuple(
        _check_one(directory, manifest, variant, interpreter, vectors[variant.golden or manifest.golden], prover)
        for variant in manifest.variants
        for interpreter in prover.usable(variant)
    )
    if not results:
        needs = {name: least for v in manifest.variants for name, least in v.requires.interpreters.items()}
        raise DeviceError(
            "this device has no interpreter for the package; install one of: "
            + ", ".join(f"{name} >= {least}" for name, least in needs.items())
        )
    return results


def _read_vectors(directory: Path, paths: tuple[str, ...], manifest: Manifest) -> list[GoldenVector]:
    vectors = [_read_vector(directory, path, manifest) for path in paths]
    expected = [tensor.to_array() for vector in vectors for tensor in vector.outputs]
    if not any(np.isfinite(array).any() for array in expected) and any(array.size for array in expected):
        raise PackageError(f"package {manifest.name}: no golden output is finite, so they prove nothing")
    return vectors


def _read_vector(directory: Path, path: str, manifest: Manifest) -> GoldenVector:
    vector = read_golden((directory / path).read_bytes(), path)
    try:
        fit([tensor.to_array() for tensor in vector.inputs], manifest.signature)
        _expect_outputs(vector, manifest.signature)
    except (CallerError, PackageError) as error:
        raise PackageError(f"golden vector {path} does not fit the model's signature: {error}") from error
    return vector


def _expect_outputs(vector: GoldenVector, signature: Signature) -> None:
    """Compare eager's answers with what the model is said to answer; artifacts may narrow, the model may not."""
    if len(vector.outputs) != len(signature.outputs):
        raise PackageError(f"expected {len(signature.outputs)} outputs, found {len(vector.outputs)}")
    sizes: dict[str, int] = {}
    for tensor, spec in zip(vector.outputs, signature.outputs, strict=True):
        if tensor.dtype != spec.dtype or not shape_fits(tensor.shape, spec, sizes):
            raise PackageError(f"expected {spec.describe()}, found {tensor.dtype}{list(tensor.shape)}")


def _check_one(
    directory: Path,
    manifest: Manifest,
    variant: Variant,
    interpreter: str,
    vectors: list[GoldenVector],
    prover: Prover[Any],
) -> GoldenResult:
    lowest_db = float("inf")
    with prover.open(directory / variant.payload, variant, interpreter) as session:
        for vector in vectors:
            outputs = session.run([tensor.to_array() for tensor in vector.inputs])
            try:
                difference = worst(compare([tensor.to_array() for tensor in vector.outputs], outputs))
            except ValueError as error:
                raise ParityError(f"variant {variant.name} on {interpreter}: {error}") from error
            lowest_db = min(lowest_db, difference.sqnr_db)
            if shortfall := difference.shortfall(variant.sqnr_min_db or manifest.golden_sqnr_min_db):
                raise ParityError(
                    f"variant {variant.name} on {interpreter} {session.version}: {shortfall}; "
                    "this device computes something else than the model"
                )
        latency_ns = prover.time([tensor.to_array() for tensor in vectors[0].inputs], session) if vectors else None
        return GoldenResult(
            variant=variant.name,
            interpreter=interpreter,
            version=session.version,
            sqnr_db=lowest_db,
            latency_ns=latency_ns,
            memory_bytes=held.uss_bytes if isinstance(held := session.memory_after, Memory) else None,
        )


def _open(artifact: Path, variant: Variant, interpreter: str) -> IsolatedSession:
    try:
        return IsolatedSession(artifact, variant.runtime, interpreter=interpreter, entry=variant.entry)
    except CallerError as error:  # it is the package that names the entry
        raise PackageError(f"variant {variant.name}: {error}") from error


def _time(inputs: list[Array], session: IsolatedSession) -> int:
    taken: list[int] = []
    while not taken or (len(taken) < _CALLS_MOST and sum(taken) < _BUDGET_NS):
        session.run(inputs)
        taken.append(session.last_run_ns)
    return min(taken)


def at_least(version: str, least: str) -> bool:
    """Whether a version is `least` or a later one."""
    return _numbers(version) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    """`2.14.0rc1+cpu` -> (2, 14): zeros at the end say nothing, and what follows the digits of a part neither."""
    parts = [re.match(r"[0-9]{0,15}", part)[0] for part in version.partition("+")[0].split(".")]  # type: ignore[index]  # matches always
    numbers = [int(part or 0) for part in parts]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)

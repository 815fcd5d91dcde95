"""Run a package's golden vectors on this device, each variant in a process that may crash."""

from __future__ import annotations

from pathlib import Path

from ferryman.runtime.compare import compare, worst
from ferryman.runtime.contracts.errors import DeviceError, ParityError
from ferryman.runtime.contracts.manifest import GoldenVector, Manifest, Variant
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import read_golden
from ferryman.runtime.session import installed


class GoldenResult(Record):
    """One variant on one interpreter of this device."""

    variant: str
    interpreter: str
    version: str
    sqnr_db: float


def usable_interpreters(variant: Variant) -> dict[str, str]:
    """Interpreters of this device on which the variant is proven: name -> version, preferred first."""
    return {
        name: version
        for name, version in installed(variant.runtime).items()
        if name in variant.requires.interpreters and _at_least(version, variant.requires.interpreters[name])
    }


def check_golden(directory: Path, manifest: Manifest) -> tuple[GoldenResult, ...]:
    """Run every variant on every interpreter this device has for it.

    Args:
        directory: holds the payloads under their manifest paths.
        manifest: of the package.

    Raises:
        ParityError: a variant misses the manifest's bar.
        RuntimeFault: an interpreter refuses a variant.
        RuntimeCrash: an interpreter died.
        DeviceError: the device can run none of the variants.
        PackageError: a golden vector is malformed.
    """
    vectors = [read_golden((directory / path).read_bytes(), path) for path in manifest.golden]
    results = tuple(
        _check_one(directory, manifest, variant, interpreter, vectors)
        for variant in manifest.variants
        for interpreter in usable_interpreters(variant)
    )
    if not results:
        needs = {name: least for v in manifest.variants for name, least in v.requires.interpreters.items()}
        raise DeviceError(
            "this device has no interpreter for the package; install one of: "
            + ", ".join(f"{name} >= {least}" for name, least in needs.items())
        )
    return results


def _check_one(
    directory: Path, manifest: Manifest, variant: Variant, interpreter: str, vectors: list[GoldenVector]
) -> GoldenResult:
    lowest_db = float("inf")
    with IsolatedSession(directory / variant.payload, variant.runtime, interpreter=interpreter) as session:
        for vector in vectors:
            outputs = session.run([tensor.to_array() for tensor in vector.inputs])
            try:
                difference = worst(compare([tensor.to_array() for tensor in vector.outputs], outputs))
            except ValueError as error:
                raise ParityError(f"variant {variant.name} on {interpreter}: {error}") from error
            lowest_db = min(lowest_db, difference.sqnr_db)
            if difference.sqnr_db < manifest.golden_sqnr_min_db:
                raise ParityError(
                    f"variant {variant.name} on {interpreter} {session.version}: output {difference.output} reaches "
                    f"{difference.sqnr_db:.1f} dB of the {manifest.golden_sqnr_min_db:g} dB the package promises; "
                    "this device computes something else than the model"
                )
        return GoldenResult(variant=variant.name, interpreter=interpreter, version=session.version, sqnr_db=lowest_db)


def _at_least(version: str, least: str) -> bool:
    return _numbers(version) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())

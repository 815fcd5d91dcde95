"""A package whose artifacts were changed without converting it anew is proven anew, on this host's interpreters."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from ferryman.runtime.compare import compare
from ferryman.runtime.contracts.errors import DeviceError, ParityError
from ferryman.runtime.contracts.manifest import Manifest, Variant, Verification
from ferryman.runtime.golden import check_golden, usable_interpreters
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import SQNR_LEAST_DB, read_golden
from ferryman.runtime.updates.base import Codec
from ferryman.runtime.updates.parse import finer_than

_ROOM_DB = 3.0
"""By how much a device may do worse than this host."""


def prove(
    manifest: Manifest,
    payloads: Mapping[str, bytes],
    changed: set[str],
    sqnr_min_db: float | None = None,
    codec: Codec | None = None,
) -> tuple[tuple[Variant, ...], float]:
    """Run every variant of a package that is about to be written.

    Args:
        manifest: of the package it was made from.
        payloads: what it holds, by path.
        changed: artifacts that are others than the manifest's.
        sqnr_min_db: the bar that answers of these must hold against the golden vectors, and they get a bar a little
            below what they reach; None: the variant's own, which stays.
        codec: what the update was sent by, where there is a bar of its own: what to try next follows from it.

    Returns:
        The variants, those of changed artifacts with what was measured now; and the lowest SQNR of these.

    Raises:
        ParityError: a variant misses its bar.
        DeviceError: no interpreter of this host runs a changed variant.
        RuntimeFault: an interpreter refuses one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in payloads.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        variants = tuple(
            _measured(folder, manifest, one, sqnr_min_db, codec) if one.payload in changed else one
            for one in manifest.variants
        )
        check_golden(folder, replace(manifest, variants=variants))
    measured = [v.sqnr_db for one in variants if one.payload in changed for v in one.verified]
    return variants, min(measured)


def _measured(
    folder: Path, manifest: Manifest, variant: Variant, sqnr_min_db: float | None, codec: Codec | None
) -> Variant:
    found = [_run(folder, manifest, variant, name) for name in usable_interpreters(variant)]
    if not found:
        raise DeviceError(
            f"nothing here runs {variant.name}, and what was not run is not published; install one of: "
            + ", ".join(variant.requires.interpreters)
        )
    found_db = min(one.sqnr_db for one in found)
    if sqnr_min_db is None:  # whether it holds its own bar, `check_golden` tells
        return replace(variant, verified=tuple(found))
    if found_db < sqnr_min_db:
        finer = finer_than(codec) if codec else ()
        raise ParityError(
            f"{variant.name} reaches {found_db:.1f} dB of {sqnr_min_db:g} dB against the model's own answers"
            + (f" by {codec.name}" if codec else "")
            + (f"; send more of the update ({', or '.join(finer)})" if finer else "; no codec of this kind sends more")
            + ", or publish it exactly"
        )
    return replace(variant, verified=tuple(found), sqnr_min_db=max(SQNR_LEAST_DB, found_db - _ROOM_DB))


def _run(folder: Path, manifest: Manifest, variant: Variant, interpreter: str) -> Verification:
    paths = variant.golden or manifest.golden
    found = []
    with IsolatedSession(folder / variant.payload, variant.runtime, interpreter=interpreter, entry=variant.entry) as it:
        for path in paths:
            vector = read_golden((folder / path).read_bytes(), path)
            answers = it.run([one.to_array() for one in vector.inputs])
            try:
                found += compare([one.to_array() for one in vector.outputs], answers)
            except ValueError as error:
                raise ParityError(f"{variant.name} on {interpreter}: {error}") from error
        version = it.version
    agreed = [one.top1_agreement for one in found if one.top1_agreement is not None]
    return Verification(
        interpreter=interpreter,
        version=version,
        vectors=len(paths),
        sqnr_db=min(one.sqnr_db for one in found),
        max_abs_error=max(one.max_abs_error for one in found),
        top1_agreement=min(agreed) if agreed else None,
    )

"""A package is one file: a stored (never compressed) zip in canonical form, sealed by a hash of itself.

Layout: `manifest.json` first, then every payload in path order, zip comment `ferryman sha256:<hex>` where the hash
covers the whole file up to those 64 digits. Stored entries make delta updates small, let payloads be read in place,
and leave no room for a zip bomb; the seal catches any flipped or missing byte before anything is parsed; and a file
that is not exactly what `write_package` would have written is refused, so two readers never see two different things.
The seal is no signature: it tells damage, not forgery.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.contracts.manifest import SCHEMA, GoldenVector, Manifest, Payload, Variant
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.tensor import Signature, pack, unpack

PACKAGE_SUFFIX = ".ferry"
MANIFEST = "manifest.json"
_SEAL = b"ferryman sha256:"
_HEX_DIGITS = 64
_CHUNK_BYTES = 1 << 20
_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Limits:
    """How much of a package a reader takes on trust before it says no."""

    package_max_bytes: int = 8 << 30
    manifest_max_bytes: int = 4 << 20
    """The whole manifest is held in memory."""
    payloads_max: int = 1000
    path_max_chars: int = 200


LIMITS = Limits()


def write_package(
    path: Path,
    *,
    name: str,
    signature: Signature,
    variants: Sequence[Variant],
    artifacts: Mapping[str, bytes],
    golden: Sequence[GoldenVector],
    golden_sqnr_min_db: float,
    created_with: Mapping[str, str],
) -> str:
    """Write a package atomically; the same arguments give the same bytes.

    Args:
        path: where to; an older file there stays until the new one is whole.
        name: of the model.
        signature: the model's.
        variants: at least one; each names one of `artifacts` as its payload.
        artifacts: payload path -> bytes.
        golden: input sets with eager's answers, run on the device before a package serves.
        golden_sqnr_min_db: the bar they must hold.
        created_with: distribution -> version.

    Returns:
        SHA-256 of the file, in hex: the package's identity.

    Raises:
        PackageError: the arguments do not make a package that `open_package` would take.
        OSError: the disk refused.
    """
    payloads = dict(artifacts)
    golden_paths = tuple(f"golden/{index}.msgpack" for index in range(len(golden)))
    payloads.update(zip(golden_paths, map(pack, golden), strict=True))
    manifest = Manifest(
        name=name,
        signature=signature,
        variants=tuple(variants),
        golden=golden_paths,
        golden_sqnr_min_db=golden_sqnr_min_db,
        payloads=tuple(
            Payload(path=p, size_bytes=len(payloads[p]), sha256=hashlib.sha256(payloads[p]).hexdigest())
            for p in sorted(payloads)
        ),
        created_with=dict(sorted(created_with.items())),
    )
    _check_manifest(manifest)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for entry, data in ((MANIFEST, encode(manifest)), *sorted(payloads.items())):
                    archive.writestr(_entry(entry), data)
                archive.comment = _SEAL + b"0" * _HEX_DIGITS
            digest = _seal(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.create_system = 3  # Unix, wherever it is written
    return entry


def _seal(file: io.BufferedRandom) -> str:
    """Replace the zeros at the end by the hash of all before them; return the hash of the whole file."""
    sealed_bytes = file.seek(0, io.SEEK_END) - _HEX_DIGITS
    whole = _hash(file, sealed_bytes)
    digits = whole.hexdigest().encode()
    file.seek(sealed_bytes)
    file.write(digits)
    whole.update(digits)
    return whole.hexdigest()


def _hash(file: io.BufferedRandom | io.BufferedReader, length: int, start: int = 0) -> hashlib._Hash:
    file.seek(start)
    digest = hashlib.sha256()
    while length and (chunk := file.read(min(_CHUNK_BYTES, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest


class Package:
    """An open package: the seal holds, the form is canonical, and every payload has the hash the manifest states."""

    def __init__(self, path: Path, sha256: str, manifest: Manifest, spans: Mapping[str, tuple[int, int]]) -> None:
        self.path = path
        self.sha256 = sha256
        self.manifest = manifest
        self._spans = spans
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def read(self, path: str) -> memoryview:
        """One payload, in place; valid until `close`."""
        start, end = self._spans[path]
        return self._view[start:end]

    def golden(self) -> list[GoldenVector]:
        """The golden vectors, decoded.

        Raises:
            PackageError: a vector is not what the format says.
        """
        return [read_golden(self.read(path), path) for path in self.manifest.golden]

    def close(self) -> None:
        """Unmap the file."""
        self._view.release()
        with suppress(BufferError):  # a caller still holds a payload; the map goes when it does
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_golden(data: bytes | memoryview, path: str) -> GoldenVector:
    """Decode one golden vector.

    Raises:
        PackageError: it is not what the format says.
    """
    try:
        vector = unpack(data, GoldenVector)
        for tensor in (*vector.inputs, *vector.outputs):
            tensor.to_array()
    except ValueError as error:
        raise PackageError(f"golden vector {path}: {error}") from error
    return vector


def open_package(path: Path) -> Package:
    """Open and verify a package; nothing is written anywhere.

    Raises:
        PackageError: it is truncated, altered, not canonical, of another schema, or hostile; the message says which.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = _check_seal(file, path)
            manifest, spans = _check_zip(file)
            _check_payloads(file, manifest, spans)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from error
    return Package(path, digest, manifest, spans)


def _check_seal(file: io.BufferedReader, path: Path) -> str:
    size = path.stat().st_size
    if size > LIMITS.package_max_bytes:
        raise PackageError(f"{size} bytes are more than the {LIMITS.package_max_bytes} a package may have")
    tail_bytes = len(_SEAL) + _HEX_DIGITS
    file.seek(max(0, size - tail_bytes))
    tail = file.read(tail_bytes)
    if len(tail) < tail_bytes or not tail.startswith(_SEAL):
        raise PackageError("no seal at the end: not a ferryman package, or its end is missing; copy it again")
    sealed = _hash(file, size - _HEX_DIGITS)
    if sealed.hexdigest().encode() != tail[-_HEX_DIGITS:]:
        raise PackageError("the seal does not match: bytes were changed or lost on the way; copy it again")
    sealed.update(tail[-_HEX_DIGITS:])
    return sealed.hexdigest()


def _check_zip(file: io.BufferedReader) -> tuple[Manifest, dict[str, tuple[int, int]]]:
    """Read the directory and insist on canonical form: stored, contiguous, in order, nothing beside the payloads."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            directory_start = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, KeyError) as error:
        raise PackageError(f"not a zip file: {error}") from error
    if len(entries) > LIMITS.payloads_max + 1:
        raise PackageError(f"{len(entries)} entries are more than the {LIMITS.payloads_max} a package may have")
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    for entry in entries:
        header = _entry(entry.filename)
        header.CRC, header.compress_size, header.file_size = entry.CRC, entry.file_size, entry.file_size
        expected = header.FileHeader()
        file.seek(position)
        if entry.header_offset != position or file.read(len(expected)) != expected:
            raise PackageError(f"entry {entry.filename!r} is not in canonical form (stored, in place, no extras)")
        start = position + len(expected)
        position = start + entry.file_size
        if entry.filename in spans:
            raise PackageError(f"entry {entry.filename!r} is there twice")
        spans[entry.filename] = (start, position)
    if position != directory_start:
        raise PackageError("there are bytes between the last entry and the directory")
    if not entries or entries[0].filename != MANIFEST:
        raise PackageError(f"the first entry is not {MANIFEST}")
    start, end = spans.pop(MANIFEST)
    if end - start > LIMITS.manifest_max_bytes:
        raise PackageError(f"a manifest of {end - start} bytes is more than {LIMITS.manifest_max_bytes}")
    file.seek(start)
    return read_manifest(file.read(end - start)), spans


class _SchemaOnly(Record):
    schema: int


def read_manifest(data: bytes) -> Manifest:
    """Decode and check a manifest.

    Raises:
        PackageError: not JSON, of another schema, or inconsistent.
    """
    try:
        schema = decode(data, _SchemaOnly).schema
        if schema != SCHEMA:
            raise PackageError(
                f"schema {schema}, and this ferryman reads schema {SCHEMA}: "
                + ("update ferryman here" if schema > SCHEMA else "convert the model again")
            )
        manifest = decode(data, Manifest)
    except ValueError as error:
        raise PackageError(f"{MANIFEST}: {error}") from error
    _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    paths = [payload.path for payload in manifest.payloads]
    for path in paths:
        if len(path) > LIMITS.path_max_chars or not _PATH.fullmatch(path) or path == MANIFEST:
            raise PackageError(f"payload path {path!r} is not a plain relative path")
    if paths != sorted(set(paths)):
        raise PackageError("payloads are not in order, or one is listed twice")
    folders = {parent for path in paths for parent in Path(path).parents}
    if clash := [path for path in paths if Path(path) in folders]:
        raise PackageError(f"payload {clash[0]!r} is also a folder")
    names = [variant.name for variant in manifest.variants]
    if not names or len(set(names)) != len(names):
        raise PackageError(f"variants must be at least one and of different names, found {names}")
    if missing := {*manifest.golden, *(v.payload for v in manifest.variants)} - set(paths):
        raise PackageError(f"payloads named but not listed: {', '.join(sorted(missing))}")


def _check_payloads(file: io.BufferedReader, manifest: Manifest, spans: Mapping[str, tuple[int, int]]) -> None:
    if list(spans) != [payload.path for payload in manifest.payloads]:
        raise PackageError("the entries are not the payloads the manifest lists")
    for payload in manifest.payloads:
        start, end = spans[payload.path]
        found = _hash(file, end - start, start).hexdigest()
        if end - start != payload.size_bytes or found != payload.sha256:
            raise PackageError(f"payload {payload.path!r} is not the one the manifest describes")

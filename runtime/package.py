"""A package is one file: a stored (never compressed) zip in canonical form, sealed by a hash of itself.

Layout: `manifest.json` first, then every payload in path order, zip comment `ferryman sha256:<hex>` where the hash
covers the whole file up to those 64 digits. Stored entries make delta updates small, let payloads be read in place,
and leave no room for a zip bomb; the seal catches any flipped or missing byte before anything is parsed; and a file
that is not exactly what `write_package` would have written is refused, so two readers never see two different things.
The seal is no signature: it tells damage, not forgery.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ferryman.runtime.archive import CRC_AT, SIZE_AT, Entry, ending, local_header
from ferryman.runtime.closing import Closing
from ferryman.runtime.compare import SQNR_CAP_DB
from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.contracts.manifest import SCHEMA, GoldenVector, Manifest, Payload, Variant
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.tensor import DTYPES, Signature, pack, unpack

PACKAGE_SUFFIX = ".ferry"
MANIFEST = "manifest.json"
_SEAL = b"ferryman sha256:"
_HEX_DIGITS = 64
_TAIL_BYTES = len(_SEAL) + _HEX_DIGITS
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,5}([.+-]?[A-Za-z][A-Za-z0-9.+-]{0,40})?", re.ASCII)
SQNR_LEAST_DB = 5.0
"""A bar below that proves nothing: noise of more than half the signal."""
_NAME = re.compile(r"\w[\w .+-]{0,99}")
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
    golden_paths = tuple(f"golden/{index}.msgpack" for index in range(len(golden)))
    if taken := sorted(set(golden_paths) & set(artifacts)):
        raise PackageError(f"artifact path {taken[0]!r} is kept for golden vectors; choose another")
    payloads = dict(sorted({**artifacts, **dict(zip(golden_paths, map(pack, golden), strict=True))}.items()))
    manifest = Manifest(
        name=name,
        signature=signature,
        variants=tuple(variants),
        golden=golden_paths,
        golden_sqnr_min_db=golden_sqnr_min_db,
        payloads=tuple(
            Payload(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in payloads.items()
        ),
        created_with=dict(created_with),
    )
    encoded = _encode(manifest)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            sha256 = _write(file, {MANIFEST: encoded, **payloads})
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return sha256


def check_name(name: str) -> str:
    """Return `name`.

    Raises:
        CallerError: it cannot name a package.
    """
    if not _NAME.fullmatch(name):
        raise CallerError(f"package name {name!r}: expected 1 to 100 letters, digits, spaces or any of _ . + -")
    return name


def _encode(manifest: Manifest) -> bytes:
    """Encode a manifest and read it back: what no reader would take is not written."""
    try:
        encoded = encode(manifest)
    except ValueError as error:  # such as half a surrogate pair in a name
        raise PackageError(f"{MANIFEST} cannot be written: {error}") from error
    if len(encoded) > LIMITS.manifest_max_bytes:
        raise PackageError(f"a manifest of {len(encoded)} bytes is more than {LIMITS.manifest_max_bytes}")
    read_manifest(encoded)
    return encoded


def _write(file: BinaryIO, contents: Mapping[str, bytes]) -> str:
    """Write every entry, the directory and the seal; return the hash of it all."""
    whole = hashlib.sha256()
    entries: list[Entry] = []
    position = 0

    def put(data: bytes) -> None:
        nonlocal position
        file.write(data)
        whole.update(data)
        position += len(data)

    for name, data in contents.items():
        entries.append(Entry(name, len(data), zlib.crc32(data), position))
        put(local_header(entries[-1]))
        put(data)
    put(ending(entries, position, _TAIL_BYTES) + _SEAL)
    put(whole.hexdigest().encode())
    return whole.hexdigest()


class Package(Closing):
    """An open package: the seal holds, the form is canonical, and every payload has the hash the manifest states.

    The file that was checked is the one that is read, whatever becomes of its path.
    """

    def __init__(
        self, path: Path, sha256: str, manifest: Manifest, spans: Mapping[str, tuple[int, int]], mapped: mmap.mmap
    ) -> None:
        self.path = path
        self.sha256 = sha256
        self.manifest = manifest
        self._spans = spans
        self._map = mapped
        self._view = memoryview(mapped)

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
        PackageError: it is truncated, altered, not canonical, of another schema, hostile, or no file at all (a folder,
            a pipe); the message says which.
        OSError: the file cannot be read.
    """
    try:
        mapped = _map(path)
        with memoryview(mapped) as view:
            sha256 = _check_seal(view)
            manifest, spans = _check_form(view)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from error
    return Package(path, sha256, manifest, spans, mapped)


def _map(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its other end
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PackageError("not a regular file")
        if found.st_size > LIMITS.package_max_bytes:
            raise PackageError(f"{found.st_size} bytes are more than the {LIMITS.package_max_bytes} a package may have")
        if not found.st_size:
            raise PackageError("the file is empty; copy it again")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def _check_seal(view: memoryview) -> str:
    """Compare the seal with the bytes; return the hash of the whole file."""
    sealed_bytes = len(view) - _HEX_DIGITS
    if bytes(view[-_TAIL_BYTES:-_HEX_DIGITS]) != _SEAL:
        raise PackageError("no seal at the end: not a ferryman package, or its end is missing; copy it again")
    whole = hashlib.sha256(view[:sealed_bytes])
    if whole.hexdigest().encode() != bytes(view[sealed_bytes:]):
        raise PackageError("the seal does not match: bytes were changed or lost on the way; copy it again")
    whole.update(view[sealed_bytes:])
    return whole.hexdigest()


def _check_form(view: memoryview) -> tuple[Manifest, dict[str, tuple[int, int]]]:
    """Insist that the file is what `write_package` would have written for its manifest and payloads."""
    size = int.from_bytes(view[SIZE_AT : SIZE_AT + 4], "little")
    entry, start, end = _entry_at(view, 0, MANIFEST, size)
    if size > LIMITS.manifest_max_bytes:
        raise PackageError(f"a manifest of {size} bytes is more than {LIMITS.manifest_max_bytes}")
    manifest = read_manifest(bytes(view[start:end]))
    entries = [entry]
    spans: dict[str, tuple[int, int]] = {}
    for payload in manifest.payloads:
        entry, start, end = _entry_at(view, end, payload.path, payload.size_bytes)
        if hashlib.sha256(view[start:end]).hexdigest() != payload.sha256:
            raise PackageError(f"payload {payload.path!r} does not have the SHA-256 that the manifest states")
        entries.append(entry)
        spans[payload.path] = (start, end)
    rest = view[end : len(view) - _HEX_DIGITS]
    expected = ending(entries, end, _TAIL_BYTES) + _SEAL
    if len(rest) != len(expected) or bytes(rest) != expected:
        raise PackageError(
            f"after the last payload, at byte {end}, there is something else than the entries' directory"
        )
    return manifest, spans


def _entry_at(view: memoryview, position: int, name: str, size: int) -> tuple[Entry, int, int]:
    """One entry with the span of its data, whose header must be exactly what it would be written with."""
    crc = int.from_bytes(view[position + CRC_AT : position + CRC_AT + 4], "little")
    entry = Entry(name, size, crc, position)
    header = local_header(entry)
    start = position + len(header)
    end = start + size
    if bytes(view[position:start]) != header or end > len(view):
        raise PackageError(
            f"expected entry {name!r} of {size} bytes at byte {position}, stored, without extras; found something else"
        )
    if zlib.crc32(view[start:end]) != crc:
        raise PackageError(f"entry {name!r} does not have the CRC that its header states")
    return entry, start, end


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
    if not _NAME.fullmatch(manifest.name):
        raise PackageError(f"package name {manifest.name!r} is not 1 to 100 letters, digits, spaces or any of _ . + -")
    _check_payloads(manifest)
    names = [variant.name for variant in manifest.variants]
    if not names or len(set(names)) != len(names):
        raise PackageError(f"variants must be at least one and of different names, found {names}")
    if not manifest.golden or len(set(manifest.golden)) != len(manifest.golden):
        raise PackageError(
            "golden vectors must be at least one and different ones: without them no device can prove what it runs; "
            f"found {list(manifest.golden)}"
        )
    paths = {payload.path for payload in manifest.payloads}
    if missing := {*manifest.golden, *(v.payload for v in manifest.variants)} - paths:
        raise PackageError(f"payloads named but not listed: {', '.join(sorted(missing))}")
    if not SQNR_LEAST_DB <= manifest.golden_sqnr_min_db <= SQNR_CAP_DB:
        raise PackageError(
            f"golden_sqnr_min_db must be {SQNR_LEAST_DB:g} to {SQNR_CAP_DB:g} dB, found {manifest.golden_sqnr_min_db:g}"
        )
    _check_signature(manifest.signature)
    for variant in manifest.variants:
        _check_signature(variant.signature)
        for name, least in variant.requires.interpreters.items():
            if not _VERSION.fullmatch(least):
                raise PackageError(f"variant {variant.name!r} asks for {name} {least[:40]!r}, which is no version")


def _check_payloads(manifest: Manifest) -> None:
    if len(manifest.payloads) > LIMITS.payloads_max:
        raise PackageError(f"{len(manifest.payloads)} payloads are more than the {LIMITS.payloads_max} it may have")
    paths = [payload.path for payload in manifest.payloads]
    for path in paths:
        if len(path) > LIMITS.path_max_chars or not _PATH.fullmatch(path) or path == MANIFEST:
            raise PackageError(f"payload path {path!r} is not a plain relative path")
    if paths != sorted(set(paths)):
        raise PackageError("payloads are not in order, or one is listed twice")
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if clash := folders & {MANIFEST, *paths}:
        raise PackageError(f"payload {min(clash)!r} is also a folder")
    sizes = [payload.size_bytes for payload in manifest.payloads]
    if min(sizes, default=0) < 0 or sum(sizes) > LIMITS.package_max_bytes:
        raise PackageError(f"payload sizes must lie between 0 and {LIMITS.package_max_bytes} in all, found {sizes}")


def _check_signature(signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in DTYPES:
            raise PackageError(f"tensor {spec.name!r} has dtype {spec.dtype!r}, none of {', '.join(DTYPES)}")
        for dim in spec.shape:
            low, high = (dim, dim) if isinstance(dim, int) else (dim.min, dim.max)
            if not 0 <= low <= high:
                raise PackageError(f"tensor {spec.name!r} has an impossible dimension {low}..{high}")

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
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ferryman.runtime.archive import CRC_AT, SIZE_AT, Entry, ending, local_header
from ferryman.runtime.closing import Closing
from ferryman.runtime.compare import SQNR_CAP_DB
from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.contracts.manifest import SCHEMA, GoldenVector, Manifest, Payload, Requirements, Variant
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.tensor import DTYPES, DynamicDim, Signature, pack, unpack

PACKAGE_SUFFIX = ".ferry"
MANIFEST = "manifest.json"
_SEAL = b"ferryman sha256:"
_HEX_DIGITS = 64
_CHUNK_BYTES = 1 << 20
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
    name_max_chars: int = 200
    """Of variants, interpreters, tensors and so on."""
    memory_max_bytes: int = 1 << 40


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

    The file that was checked is the one that is read, whatever becomes of its path; should its bytes be changed
    meanwhile, reading them is an error.
    """

    def __init__(
        self, path: Path, sha256: str, manifest: Manifest, spans: Mapping[str, tuple[int, int]], file: _File
    ) -> None:
        self.path = path
        self.sha256 = sha256
        self.manifest = manifest
        self._spans = spans
        self._hashes = {payload.path: payload.sha256 for payload in manifest.payloads}
        self._file = file

    def read(self, path: str) -> bytes:
        """One payload.

        Raises:
            PackageError: the file was changed since it was opened.
            CallerError: it cannot be read any more, or is closed.
        """
        return b"".join(self.chunks(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        """One payload, piece by piece, whatever its size; only once the last one has come are all of them good.

        Raises: as `read`.
        """
        found = hashlib.sha256()
        with _at_fault(self.path):
            for chunk in self._file.chunks(*self._spans[path]):
                found.update(chunk)
                yield chunk
            if found.hexdigest() != self._hashes[path]:
                raise PackageError(f"payload {path!r} was changed while it was open; copy it again")

    def golden(self) -> list[GoldenVector]:
        """The golden vectors, decoded.

        Raises:
            PackageError: a vector is not what the format says.
        """
        return [read_golden(self.read(path), path) for path in self.manifest.golden]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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


def open_package(path: Path | str) -> Package:
    """Open and verify a package; nothing is written anywhere.

    Raises:
        PackageError: it is truncated, altered, not canonical, of another schema, hostile, or no file at all (a folder,
            a pipe); the message says which.
        CallerError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    with _at_fault(path):
        file = _File(path)
        try:
            sha256 = _check_seal(file)
            manifest, spans = _check_form(file)
        except BaseException:
            file.close()
            raise
    return Package(path, sha256, manifest, spans, file)


@contextmanager
def _at_fault(path: Path) -> Iterator[None]:
    """Name the package in what its bytes raise."""
    try:
        yield
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from error
    except OSError as error:
        raise CallerError(
            f"cannot read the package {path}: {error.strerror}; name a {PACKAGE_SUFFIX} file that `ferryman convert` "
            "wrote"
        ) from error


class _File:
    """A package's bytes, by position.

    Read, never mapped: bytes that someone cuts off a mapped file end the process that looks at them.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its other end
        try:
            self.size = _size_of(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        self._file = io.FileIO(descriptor)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; fewer where the file ended before that when it was opened."""
        return b"".join(self.chunks(start, end))

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """What `read` gives, piece by piece."""
        end = min(end, self.size)
        while start < end:
            if self._file.closed:
                raise CallerError("the package is closed; open it again")
            data = os.pread(self._file.fileno(), min(end - start, _CHUNK_BYTES), start)
            if not data:
                raise PackageError(f"the end is gone from byte {start} on, cut off while it was open; copy it again")
            yield data
            start += len(data)

    def close(self) -> None:
        self._file.close()


def _size_of(found: os.stat_result) -> int:
    if not stat.S_ISREG(found.st_mode):
        raise PackageError("not a regular file")
    if found.st_size > LIMITS.package_max_bytes:
        raise PackageError(f"{found.st_size} bytes are more than the {LIMITS.package_max_bytes} a package may have")
    if not found.st_size:
        raise PackageError("the file is empty; copy it again")
    return found.st_size


def _check_seal(file: _File) -> str:
    """Compare the seal with the bytes; return the hash of the whole file."""
    sealed_bytes = file.size - _HEX_DIGITS
    if file.read(max(0, file.size - _TAIL_BYTES), sealed_bytes) != _SEAL:
        raise PackageError("no seal at the end: not a ferryman package, or its end is missing; copy it again")
    whole = hashlib.sha256()
    for chunk in file.chunks(0, sealed_bytes):
        whole.update(chunk)
    sealed = file.read(sealed_bytes, file.size)
    if whole.hexdigest().encode() != sealed:
        raise PackageError("the seal does not match: bytes were changed or lost on the way; copy it again")
    whole.update(sealed)
    return whole.hexdigest()


def _check_form(file: _File) -> tuple[Manifest, dict[str, tuple[int, int]]]:
    """Insist that the file is what `write_package` would have written for its manifest and payloads."""
    size = int.from_bytes(file.read(SIZE_AT, SIZE_AT + 4), "little")
    entry, start, end, _ = _entry_at(file, 0, MANIFEST, size)
    if size > LIMITS.manifest_max_bytes:
        raise PackageError(f"a manifest of {size} bytes is more than {LIMITS.manifest_max_bytes}")
    manifest = read_manifest(file.read(start, end))
    entries = [entry]
    spans: dict[str, tuple[int, int]] = {}
    for payload in manifest.payloads:
        entry, start, end, sha256 = _entry_at(file, end, payload.path, payload.size_bytes)
        if sha256 != payload.sha256:
            raise PackageError(f"payload {payload.path!r} does not have the SHA-256 that the manifest states")
        entries.append(entry)
        spans[payload.path] = (start, end)
    rest_bytes = file.size - _HEX_DIGITS - end
    expected = ending(entries, end, _TAIL_BYTES) + _SEAL
    if rest_bytes != len(expected) or file.read(end, end + rest_bytes) != expected:
        raise PackageError(
            f"after the last payload, at byte {end}, there is something else than the entries' directory"
        )
    return manifest, spans


def _entry_at(file: _File, position: int, name: str, size: int) -> tuple[Entry, int, int, str]:
    """One entry, the span and SHA-256 of its data; its header must be exactly what it would be written with."""
    crc = int.from_bytes(file.read(position + CRC_AT, position + CRC_AT + 4), "little")
    entry = Entry(name, size, crc, position)
    header = local_header(entry)
    start = position + len(header)
    end = start + size
    if file.read(position, start) != header or end > file.size:
        raise PackageError(
            f"expected entry {name!r} of {size} bytes at byte {position}, stored, without extras; found something else"
        )
    found, whole = 0, hashlib.sha256()
    for chunk in file.chunks(start, end):
        found = zlib.crc32(chunk, found)
        whole.update(chunk)
    if found != crc:
        raise PackageError(f"entry {name!r} does not have the CRC that its header states")
    return entry, start, end, whole.hexdigest()


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
    _check_names(manifest)
    names = [variant.name for variant in manifest.variants]
    if not names or len(set(names)) != len(names):
        raise PackageError(f"variants must be at least one and of different names, found {names}")
    if not manifest.golden or len(set(manifest.golden)) != len(manifest.golden):
        raise PackageError(
            "golden vectors must be at least one and different ones: without them no device can prove what it runs; "
            f"found {list(manifest.golden)}"
        )
    paths = {payload.path for payload in manifest.payloads}
    named = {path for v in manifest.variants for path in (v.payload, *v.golden)}
    if missing := {*manifest.golden, *named} - paths:
        raise PackageError(f"payloads named but not listed: {', '.join(sorted(missing))}")
    bars = {f"sqnr_min_db of {v.name}": v.sqnr_min_db for v in manifest.variants if v.sqnr_min_db is not None}
    for what, bar_db in {"golden_sqnr_min_db": manifest.golden_sqnr_min_db, **bars}.items():
        if not SQNR_LEAST_DB <= bar_db <= SQNR_CAP_DB:
            raise PackageError(f"{what} must be {SQNR_LEAST_DB:g} to {SQNR_CAP_DB:g} dB, found {bar_db:g}")
    _check_signature(manifest.signature)
    for variant in manifest.variants:
        _check_signature(variant.signature)
        _check_requirements(variant.name, variant.requires)
        if variant.share is not None and not 0 < variant.share <= 1:
            raise PackageError(f"share of variant {variant.name!r} must be in (0, 1], found {variant.share}")


def _check_requirements(variant: str, requires: Requirements) -> None:
    if not requires.interpreters:
        raise PackageError(f"variant {variant!r} names no interpreter, so no device could run it")
    for name, least in requires.interpreters.items():
        if not _VERSION.fullmatch(least):
            raise PackageError(f"variant {variant!r} asks for {name} {least[:40]!r}, which is no version")
    if not 0 <= requires.memory_estimate_bytes <= LIMITS.memory_max_bytes:
        raise PackageError(
            f"memory_estimate_bytes must be 0 to {LIMITS.memory_max_bytes}, found {requires.memory_estimate_bytes}"
        )


def _check_names(manifest: Manifest) -> None:
    """Names reach terminals and messages: nothing in them may steer one."""
    variants = manifest.variants
    signatures = (manifest.signature, *(v.signature for v in variants))
    specs = [spec for s in signatures for spec in (*s.inputs, *s.outputs)]
    named: dict[str, Iterable[str]] = {
        "variants": (v.name for v in variants),
        "forms": (v.form for v in variants),
        "entries": (v.entry for v in variants if v.entry is not None),
        "interpreters": (name for v in variants for name in v.requires.interpreters),
        "instruction sets": (name for v in variants for name in v.requires.isa),
        "tensors": (spec.name for spec in specs),
        "dimensions": (dim.symbol for spec in specs for dim in spec.shape if isinstance(dim, DynamicDim)),
    }
    for what, names in named.items():
        for name in names:
            if not (name and name.isprintable() and len(name) <= LIMITS.name_max_chars):
                short = name[: LIMITS.name_max_chars]
                raise PackageError(f"name {short!r} of {what} is not 1 to {LIMITS.name_max_chars} printable characters")


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

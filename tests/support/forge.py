"""Makes packages that `write_package` would not: any entries, any manifest, any bytes, and a seal that holds."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SEAL = b"ferryman sha256:"
HEX_DIGITS = 64


def reseal(data: bytes) -> bytes:
    """Replace the last 64 bytes by the hash of what comes before them."""
    body = data[:-HEX_DIGITS]
    return body + hashlib.sha256(body).hexdigest().encode()


def entry(name: str, **changes: Any) -> zipfile.ZipInfo:
    """An entry as ferryman writes it, with `changes`."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr, info.create_system = 0o644 << 16, 3
    for field, value in changes.items():
        setattr(info, field, value)
    return info


def sealed_zip(entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """A zip of `entries`, by the standard library, sealed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(entry(name) if isinstance(name, str) else name, data)
        archive.comment = SEAL + b"0" * HEX_DIGITS
    return reseal(buffer.getvalue())


def contents(package: Path) -> dict[str, bytes]:
    """Every entry of a package."""
    with zipfile.ZipFile(package) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def listed(manifest: dict[str, Any], payloads: Mapping[str, bytes]) -> dict[str, Any]:
    """`manifest` with `payloads` listed truly."""
    rows = [
        {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in payloads.items()
    ]
    return {**manifest, "payloads": rows}


def forged(manifest: dict[str, Any] | bytes, payloads: Mapping[str, bytes]) -> bytes:
    """A sealed package of this manifest and these payloads, whether they fit or not."""
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return sealed_zip([("manifest.json", data), *payloads.items()])

"""Updates over the air against their bars: `python -m tests.benchmarks.ota [--json]`."""

from __future__ import annotations

from importlib import metadata

from tests.benchmarks import ota_bytes, ota_fleet, ota_install, ota_models, ota_repository, ota_wire
from tests.benchmarks.frame import main

PARTS = (
    *ota_bytes.PARTS,
    *ota_models.PARTS,
    *ota_repository.PARTS,
    *ota_wire.PARTS,
    *ota_install.PARTS,
    *ota_fleet.PARTS,
)


def versions() -> dict[str, str]:
    """Of what the bars set ferryman against."""
    return {name: metadata.version(name) for name in ("backports.zstd", "bsdiff4", "fastcdc", "tuf", "urllib3")}


if __name__ == "__main__":
    main("ota", PARTS, versions)

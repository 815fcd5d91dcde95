"""What must hold before an install destroys anything: this device can run the package, and there is room for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.contracts.slot import SlotName
from ferryman.runtime.golden import missing_operators, proven_among, usable_interpreters
from ferryman.runtime.slots import SlotStore

_BLOCK_BYTES = 4096
_SECTOR_BYTES = 512
"""The unit of st_blocks, whatever the file system's own."""


def check_device(manifest: Manifest, isa: frozenset[str]) -> None:
    """See that this device can run at least one variant.

    Raises:
        DeviceError: it cannot; the message says for each variant what is missing.
    """
    missing = {variant.name: lacking(variant, isa) for variant in manifest.variants}
    if all(missing.values()):
        raise DeviceError(
            f"this device can run no variant of {manifest.name}: "
            + "; ".join(f"{name} needs {what}" for name, what in missing.items())
        )


def lacking(
    variant: Variant, isa: frozenset[str], operators: int | None = None, versions: Mapping[str, str] | None = None
) -> str:
    """What a device lacks to run a variant; empty: nothing.

    Args:
        variant: of a package.
        isa: instruction sets of its processor.
        operators: version of ferryman's own operators there, 0 where there are none; None: of this device.
        versions: interpreters there, name -> version; None: of this device.
    """
    if absent := sorted(set(variant.requires.isa) - isa):
        return f"the instruction sets {', '.join(absent)}, which this processor lacks"
    if missing := missing_operators(variant, operators):
        return missing
    if not (usable_interpreters(variant) if versions is None else proven_among(variant, versions)):
        least = (f"{name} >= {version}" for name, version in variant.requires.interpreters.items())
        return f"one of {', '.join(least)} (pip install it)"
    return ""


def check_space(store: SlotStore, target: SlotName | None, need_bytes: int) -> None:
    """See that the disk has room, counting what clearing the target slot sets free; None: nothing is cleared.

    Raises:
        DeviceError: it has not.
    """
    disk = os.statvfs(store.root)
    free = disk.f_bavail * disk.f_frsize + (freed_bytes(store.directory(target)) if target else 0)
    if free < need_bytes:
        raise DeviceError(f"{store.root} needs {need_bytes} bytes free, found {free}; make room on the device")


def freed_bytes(directory: Path) -> int:
    """What removing a folder sets free: a file that has other names (it is shared with a slot or a download) stays."""
    found = [(Path(top) / file).lstat() for top, _, files in os.walk(directory) for file in files]
    return sum(one.st_blocks * _SECTOR_BYTES for one in found if stat.S_ISREG(one.st_mode) and one.st_nlink == 1)


def on_disk_bytes(size_bytes: int, files: int) -> int:
    """Bytes, with a block more for each file, its folder and the state."""
    return size_bytes + (2 * files + 4) * _BLOCK_BYTES

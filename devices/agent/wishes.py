"""What is desired of a device, on its disk, and whether something is that."""

from __future__ import annotations

import logging
from pathlib import Path

from ferryman.runtime.contracts.errors import TrustError
from ferryman.runtime.contracts.record import R, Record, decode, encode
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.contracts.rollout import Desired
from ferryman.runtime.contracts.slot import Slot
from ferryman.runtime.durable import write_durable

log = logging.getLogger(__name__)


def holds(slot: Slot | None, desired: Desired) -> bool:
    """Whether a slot has what is desired, and the variants of it."""
    if slot is None or slot.package_sha256 != desired.package_sha256:
        return False
    if desired.previous:  # what it had, whatever of it that was
        return True
    return slot.variants is None or (bool(desired.variants) and set(desired.variants) <= set(slot.variants))


def expect(release: Release, desired: Desired) -> None:
    """See that what is desired is what was signed.

    Raises:
        TrustError: it is not.
    """
    if release.package_sha256 != desired.package_sha256:
        raise TrustError(
            f"{desired.release} is package {release.package_sha256[:12]} in the repository, and "
            f"{desired.package_sha256[:12]} is asked for: whoever asks does not mean what was signed; start the "
            "rollout anew"
        )


def read(path: Path, kind: type[R]) -> R | None:
    """A record of this folder; None: it is not there, or damaged, which the log says."""
    try:
        return decode(path.read_bytes(), kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is ignored: %s", path, error)
        return None


def write(path: Path, record: Record) -> None:
    """Put a record in its place.

    Raises:
        DeviceError: the disk refused.
    """
    write_durable(path, encode(record))

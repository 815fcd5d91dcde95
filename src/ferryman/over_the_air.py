"""Publishing as a plain function; the command does the same with words around it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.publish import publish as run
from ferryman.runtime.contracts.release import Release


def publish(
    package: Path | str,
    repository: Path | str,
    keys: Path | str | Sequence[Path | str],
    *,
    family: str | None = None,
    version: str | None = None,
    new_signature: bool = False,
) -> Release:
    """Publish a package in a signed repository, with deltas from the newest three releases of its family.

    Args:
        package: that `convert` wrote.
        repository: its folder.
        keys: folder of signing keys, or several.
        family: of models; None: the package's name.
        version: name of the release within its family; None: the next number.
        new_signature: publish it though it takes or gives something else than the family's newest release.

    Returns:
        The release; its `name` is what a rollout is started with. One that was published before is given back.

    Raises:
        CallerError: no repository, no key for the family, or the version or signature is another's.
        PackageError: the package is damaged.
        RepositoryError: the repository is damaged; it is as it was.
    """
    folders = [keys] if isinstance(keys, str | Path) else keys
    keyring = Keyring([Path(one) for one in folders])
    now = datetime.now(UTC)
    done = run(
        Path(package), Path(repository), keyring, now, family=family, version=version, new_signature=new_signature
    )
    return done.release

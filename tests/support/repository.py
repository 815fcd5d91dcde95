"""A repository with keys in a folder, tiny packages published in it, and a server; and ways to damage it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.manage import init, trusted_root
from ferryman.devices.fleet.repository.metadata import Roles, read_roles
from ferryman.devices.fleet.repository.publish import publish
from ferryman.devices.fleet.repository.releases import read_releases, release_file
from ferryman.devices.fleet.repository.serve import RepositoryServer
from ferryman.runtime.contracts.release import Release, target_path
from tests.support.packages import write_tiny_package


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class TestRepository:
    """Where it lies, and what a test does to it."""

    __test__ = False
    path: Path
    keys: Path
    offline: Path
    keyring: Keyring = field(init=False)

    def __post_init__(self) -> None:
        self.keyring = Keyring([self.keys, self.offline])

    @property
    def root(self) -> bytes:
        """What a device is provisioned with."""
        return trusted_root(self.path)

    @property
    def metadata(self) -> Path:
        return self.path / "metadata"

    def roles(self) -> Roles:
        return read_roles(self.path)

    def publish(
        self, package: Path, version: str | None = None, *, now: datetime | None = None, **options: Any
    ) -> Release:
        """Publish a package in family `digits`, if no other is named."""
        options.setdefault("family", "digits")
        return publish(package, self.path, self.keyring, now or utc_now(), version=version, **options).release

    def publish_tiny(self, added: float, version: str | None = None, **options: Any) -> Release:
        """Publish the package that adds `added`; `padding` makes it larger."""
        padding = options.pop("padding", b"")
        package = write_tiny_package(self.path.parent / f"add-{added:g}.ferry", added=added, padding=padding)
        return self.publish(package, version, **options)

    def release(self, name: str) -> Release:
        return read_releases(self.path, self.roles())[target_path(name)]

    def release_file(self, name: str) -> Path:
        """The signed target of a release."""
        return release_file(self.path, self.roles().releases[target_path(name)])

    def packs(self) -> list[Path]:
        return sorted((self.path / "packs").glob("*/*.pack"))

    def piece_file(
        self, release: Release, path: str = "artifacts/model.tflite", recipe: int = 0
    ) -> tuple[Path, int, int]:
        """Pack, offset and length of the first stored piece of a payload."""
        from ferryman.devices.fleet.repository.packs import Packs
        from ferryman.runtime.contracts.release import pack_path

        payload = next(one for one in release.payloads if one.path == path)
        chosen = payload.recipes[recipe]
        with Packs(self.path) as packs:
            index = packs.index(chosen, payload.size_bytes, 1 << 62 if chosen.base else 0)
        piece = next(one for one in index.pieces if one.length)
        return self.path / pack_path(index.packs[piece.pack]), piece.offset, piece.length

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve it in a thread; gives the base URL."""
        with serving(self.path) as url:
            yield url


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """The built-in server, in a thread."""
    with RepositoryServer(path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def make_repository(
    folder: Path,
    families: Sequence[str] = ("digits",),
    *,
    root_keys: int = 1,
    threshold: int = 1,
    now: datetime | None = None,
) -> TestRepository:
    """A new repository FOLDER/repository, keys in FOLDER/keys, root's in FOLDER/offline."""
    made = TestRepository(folder / "repository", folder / "keys", folder / "offline")
    init(
        made.path,
        Keyring([made.keys]),
        now or utc_now(),
        families=families,
        root_keys=root_keys,
        threshold=threshold,
        offline=[made.offline],
    )
    return made


def flip(path: Path, at: int = 0) -> None:
    """Change one bit of a byte in a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def edit_json(path: Path, change: Any) -> None:
    """Change a JSON file without signing it again."""
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data))


def days(count: float) -> timedelta:
    return timedelta(days=count)

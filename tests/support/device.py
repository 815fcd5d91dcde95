"""A device that updates itself: a slot store with a package that serves, a root it trusts, and the real client."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ferryman.devices.agent.update.client import Staged, UpdateClient
from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged


def no_golden(_directory: Path, _manifest: Any) -> tuple[()]:
    return ()


class Device:
    """One device; `clock_ahead` moves its clock."""

    def __init__(self, folder: Path, trusted_root: bytes | None = None, package: Path | None = None) -> None:
        """A new one, which runs `package`; or the one whose store is there."""
        self.root = folder
        self.clock_ahead = timedelta()
        self.wire_bytes = 0
        """Of the last update, whatever became of it."""
        if package is not None and trusted_root is not None:
            install(package, folder, golden=no_golden)
            (folder / "trust").mkdir()
            (folder / "trust" / "root.json").write_bytes(trusted_root)
        self.store = SlotStore(folder)

    def update(self, name: str, url: str, *, between: Callable[[], object] = lambda: None, **config: Any) -> Staged:
        """Fetch `family/version` and install it; `between` is called once its release is known."""
        settings = UpdateConfig(url=url, **{"proxy": "", "timeout_s": 5.0, "patience_s": 10.0, **config})
        client = UpdateClient(self.root, settings, now=lambda: datetime.now(UTC) + self.clock_ahead)
        try:
            release = client.check(name)
            between()
            staged = client.fetch(release)
            install_staged(
                self.store,
                staged.directory,
                staged.manifest,
                package_sha256=release.package_sha256,
                release=release.name,
                variants=staged.variants,
                golden=no_golden,
            )
            client.discard(release)
        finally:
            self.wire_bytes = client.wire_bytes
            client.close()
        return staged

    def serving(self) -> str:
        """SHA-256 of the package that serves, every byte of it read back."""
        return self.store.active().slot.package_sha256

    def holds(self, data: bytes) -> bool:
        """Whether these bytes are anywhere on its disk."""
        return any(data in path.read_bytes() for path in self.root.rglob("*") if path.is_file())

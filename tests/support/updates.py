"""A device that updates itself from a repository, for tests: its root, its clients, and what it did."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferryman.devices.agent.update.client import Staged, UpdateClient
from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged


@dataclass
class UpdatingDevice:
    """One device."""

    root: Path
    provisioned: bytes
    url: str = ""

    def __post_init__(self) -> None:
        (self.root / "trust").mkdir(parents=True, exist_ok=True)
        (self.root / "trust" / "root.json").write_bytes(self.provisioned)

    @property
    def store(self) -> SlotStore:
        return SlotStore(self.root)

    def client(self, *, cancelled: threading.Event | None = None, **config: Any) -> UpdateClient:
        given = {"url": self.url, "timeout_s": 3.0, "patience_s": 5.0, "proxy": "", **config}
        return UpdateClient(self.root, UpdateConfig(**given), cancelled=cancelled)

    def fetch(self, name: str, variants: Sequence[str] = (), **config: Any) -> Staged:
        with self.client(**config) as client:
            return client.fetch(client.check(name), variants)

    def update(self, name: str, variants: Sequence[str] = (), **config: Any) -> Staged:
        """Fetch and install; golden vectors are not run, for no interpreter is wanted."""
        staged = self.fetch(name, variants, **config)
        install_staged(
            self.store,
            staged.directory,
            staged.manifest,
            package_sha256=staged.release.package_sha256,
            release=staged.release.name,
            variants=staged.variants,
            golden=lambda _directory, _manifest: (),
        )
        with self.client() as client:
            client.discard(staged.release)
        return staged

    def files(self) -> dict[str, bytes]:
        """All that its slots hold, and which of them counts."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for top in ("slots", "state.json")
            for path in [self.root / top, *(self.root / top).rglob("*")]
            if path.is_file()
        }

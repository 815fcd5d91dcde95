"""A device that updates itself: a slot store with a package that serves, a root it trusts, and the real client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from ferryman.devices.agent.update.client import Staged, UpdateClient
from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.devices.agent.updating import Hands, Updating
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.contracts.rollout import Desired, Health, Reported
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged


def no_golden(_directory: Path, _manifest: Any) -> tuple[()]:
    return ()


_VERSIONS = count(1)


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

    def update(self, name: str, url: str, **config: Any) -> Staged:
        """Fetch `family/version` and install it, for good."""
        with self._client(url, lambda: None, None, config) as client:
            release = client.check(name)
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
        return staged

    def told(
        self, name: str, package_sha256: str, url: str, *, between: Callable[[], object] = lambda: None, **config: Any
    ) -> Reported:
        """Have the agent's own loop bring a release; what it reports last of this attempt."""
        said: list[Reported] = []
        stop, done = threading.Event(), threading.Event()

        def report(reported: Reported) -> None:
            said.append(reported)
            if reported.error is not None or reported.state == "trial":
                stop.set()
                done.set()

        hands = Hands(
            client=lambda cancelled: self._client(url, between, cancelled, config),
            ready=lambda _desired: "",
            health=lambda: Health(seconds=0, starts=1, requests=0, errors=0, latency_ns=None, before_latency_ns=None),
            report=report,
            golden=lambda _pick: no_golden,
        )
        updating = Updating(self.store, "device", "a board", hands)
        desired = Desired(version=next(_VERSIONS), rollout="r", release=name, package_sha256=package_sha256)
        updating.desire(desired)
        thread = threading.Thread(target=updating.run, args=(stop,))
        thread.start()
        finished = done.wait(60)
        stop.set()
        updating.wake()
        thread.join(60)
        assert finished, said
        return said[-1]

    def _client(
        self, url: str, between: Callable[[], object], cancelled: threading.Event | None, config: dict[str, Any]
    ) -> UpdateClient:
        settings = UpdateConfig(url=url, **{"proxy": "", "timeout_s": 5.0, "patience_s": 10.0, **config})
        device = self

        class Client(UpdateClient):
            def check(self, name: str) -> Release:
                release = super().check(name)
                between()
                return release

            def close(self) -> None:
                device.wire_bytes = self.wire_bytes
                super().close()

        return Client(self.root, settings, cancelled=cancelled, now=lambda: datetime.now(UTC) + self.clock_ahead)

    def serving(self) -> str:
        """SHA-256 of the package that serves, every byte of it read back."""
        return self.store.active().slot.package_sha256

    def holds(self, data: bytes) -> bool:
        """Whether these bytes are anywhere on its disk."""
        return any(data in path.read_bytes() for path in self.root.rglob("*") if path.is_file())

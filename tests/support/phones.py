"""A phone at an adb server of its own, a stand-in for the runner, two packages and a devices file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.push import push_to_phone
from ferryman.runtime.package import open_package
from ferryman.runtime.slots import SlotStore
from tests.support.adbd import ADB, AndroidPhone, adb_server
from tests.support.phone import WHY_NOT, AndroidSystem, stand_in_bundle, write_phone_package

WHY_NO_PHONES = WHY_NOT or ("" if ADB else "adb is not installed (apt-get install adb)")


class PhoneScene:
    """What a test needs."""

    def __init__(self, folder: Path, phone: AndroidPhone) -> None:
        self.folder, self.phone, self.system = folder, phone, phone.system
        self.bundle = stand_in_bundle(folder / "runner.tar.gz")
        self.first = write_phone_package(folder / "first.ferry", added=1)
        self.second = write_phone_package(folder / "second.ferry", added=2, padding=3_000_000)
        self.device = AdbDevice(name="phone", adb=phone.serial, root=phone.system.home)
        self.devices = folder / "devices.toml"
        self.broker = ""
        self.write_devices()

    def write_devices(self) -> None:
        broker = f'broker = "{self.broker}"\n' if self.broker else ""
        self.devices.write_text(f'[phone]\nadb = "{self.phone.serial}"\nroot = "{self.system.home}"\n{broker}')

    def words(self, *words: str | Path) -> list[str]:
        runner = ["--runner", str(self.bundle)] if words[0] in {"push", "profile"} else []
        return [*map(str, words), *runner, "--devices", str(self.devices)]

    def ferryman(self, *words: str | Path) -> str:
        done = CliRunner().invoke(main, self.words(*words))
        assert done.exit_code == 0, done.output
        return done.output

    def push(self, package: Path) -> None:
        with open_package(package) as opened:
            push_to_phone(opened, self.device, bundle_file=self.bundle)

    @property
    def serving(self) -> str:
        return SlotStore(self.system.home).active().slot.package_sha256


@contextlib.contextmanager
def phone_scene(folder: Path, monkeypatch, system: AndroidSystem | None = None) -> Iterator[PhoneScene]:
    """All of it, gone afterwards."""
    phone = AndroidPhone(system or AndroidSystem(folder / "phone"))
    monkeypatch.setenv("FERRYMAN_PHONES", str(folder / "relays"))
    with adb_server(monkeypatch, phone):
        yield PhoneScene(folder, phone)
    phone.close()

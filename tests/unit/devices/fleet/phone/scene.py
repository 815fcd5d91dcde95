"""A phone, a stand-in for its runner, and two packages."""

from __future__ import annotations

from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.push import push_to_phone
from ferryman.runtime.package import open_package
from ferryman.runtime.slots import SlotStore
from tests.support.phone import AndroidSystem, DirectLink, stand_in_bundle, write_phone_package


class Scene:
    """A phone and two packages."""

    def __init__(self, folder):
        self.system = AndroidSystem(folder / "phone")
        self.device = AdbDevice(name="phone", adb="", root=self.system.home)
        self.bundle = stand_in_bundle(folder / "runner.tar.gz")
        self.first = write_phone_package(folder / "first.ferry", added=1)
        self.second = write_phone_package(folder / "second.ferry", added=2)

    def push(self, package, link=None, **options):
        link = link or DirectLink(self.system)
        options.setdefault("bundle_file", self.bundle)
        with open_package(package) as opened:
            return push_to_phone(opened, self.device, connect=lambda _: link, **options)

    @property
    def serving(self):
        """SHA-256 of what serves, as another device's own store reads it, every byte of it."""
        return SlotStore(self.system.home).active().slot.package_sha256

    def left(self):
        return sorted(path.name for path in self.system.home.iterdir())

"""Install a package on a phone from here: plan, check, apply, as `ferryman.runtime.install` does on other devices.

Until the last step, one rename of the state, the old slot serves; whatever fails or is cut before leaves it serving.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.lock import locked
from ferryman.devices.fleet.phone.phone import Connect, Phone, connect_phone
from ferryman.devices.fleet.phone.proof import PhoneSession, Work, phone_prover
from ferryman.devices.fleet.phone.runner import (
    ABIS,
    Bundle,
    Runner,
    RunnerFacts,
    find_bundle,
    install_runner,
    remove_others,
    unpacked,
)
from ferryman.devices.fleet.phone.store import PhoneStore
from ferryman.devices.fleet.phone.suits import suiting, usable_on
from ferryman.profiler.runner import extracted
from ferryman.runtime.checks import on_disk_bytes
from ferryman.runtime.contracts.errors import DeviceError, FerrymanError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.numbers import epoch_ns
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.slot import Slot, SlotState, parse_pick
from ferryman.runtime.cpu import instruction_sets
from ferryman.runtime.golden import Prover, check_golden
from ferryman.runtime.install import InstallResult
from ferryman.runtime.package import MANIFEST, Package
from ferryman.runtime.picking import pick_variant
from ferryman.runtime.slots import activated, inactive, rolled_back

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ready:
    """A phone that is locked, with a runner that runs there."""

    phone: Phone
    store: PhoneStore
    bundle: Bundle
    runner: Runner
    facts: RunnerFacts
    isa: frozenset[str]


@contextlib.contextmanager
def phone_ready(
    device: AdbDevice, bundle_file: Path | None, progress: Progress, connect: Connect = connect_phone
) -> Iterator[Ready]:
    """Connect, lock, and bring the runner there.

    Raises:
        CallerError: no adb or runner here, or which phone is not said.
        LinkError: the phone is not there, or the link broke.
        BusyError: someone is at work there.
        DeviceError: it is of another machine than the runner, has no room, or runs nothing below its root.
    """
    progress("connect", 0, 0)
    with contextlib.closing(connect(device)) as link:
        phone = Phone(device.name, link, device.root)
        machine, abis = [*phone.do("uname -m; getprop ro.product.cpu.abilist").split("\n"), "", ""][:2]
        if machine not in ABIS or ABIS[machine] not in abis.split(","):
            known = ", ".join(f"{abi} ({name})" for name, abi in ABIS.items())
            raise DeviceError(f"{device.name} runs {abis or 'nothing'} on {machine}; there are runners for {known}")
        with unpacked(find_bundle(bundle_file, machine)) as bundle:
            if bundle.machine != machine:
                raise DeviceError(f"{device.name} is {machine}, and the runner is for {bundle.machine}; give another")
            with locked(phone) as lock:
                store = PhoneStore(phone, lock)
                store.open()
                try:
                    progress("runner", 0, 0)
                    runner = install_runner(store, bundle, lambda done, total: progress("runner", done, total))
                    cpuinfo = phone.do("cat /proc/cpuinfo")
                    yield Ready(phone, store, bundle, runner, runner.facts(), instruction_sets(cpuinfo))
                finally:
                    with contextlib.suppress(FerrymanError):
                        store.close()


@dataclass(frozen=True)
class Pushed:
    """What a push to a phone did."""

    active: Slot
    connect_ns: int
    upload_ns: int
    install: InstallResult | None


def push_to_phone(
    package: Package,
    device: AdbDevice,
    *,
    pick: str = "first",
    bundle_file: Path | None = None,
    progress: Progress = lambda _step, _done, _total: None,
    connect: Connect = connect_phone,
) -> Pushed:
    """Write the inactive slot, read it back, run the golden vectors on the phone, activate it.

    Args:
        package: verified.
        device: the phone.
        pick: see `parse_pick`.
        bundle_file: the runner's; None: see `find_bundle`.
        progress: told of every step.
        connect: a seam for tests.

    Raises:
        CallerError: no such pick; or see `phone_ready`.
        LinkError: the phone is not there, or the link broke; pushing again is safe.
        DeviceError: no room, nothing that it can run, or nothing within the pick's budget; the old slot serves.
        ParityError: the phone computes something else than the model.
    """
    parse_pick(pick)
    started = time.perf_counter_ns()
    with phone_ready(device, bundle_file, progress, connect) as ready, extracted(package) as folder:
        connect_ns = time.perf_counter_ns() - started
        manifest = suiting(package.manifest, ready.facts, ready.isa)
        state = ready.store.read_state()
        active = state.active
        if active and active.package_sha256 == package.sha256 and ready.store.intact(active):
            if active.pick == pick:
                return Pushed(active, connect_ns, 0, None)
            repicked = _repick(ready, folder, manifest, state, active, pick)
            return Pushed(repicked.active, connect_ns, 0, repicked)
        installed, upload_ns = _Install(ready, package, manifest, folder, pick, progress).apply(state)
        remove_others(ready.store, ready.bundle)
        return Pushed(installed.active, connect_ns, upload_ns, installed)


def _repick(ready: Ready, folder: Path, manifest: Manifest, state: SlotState, active: Slot, pick: str) -> InstallResult:
    started = time.perf_counter_ns()
    results = check_golden(folder, manifest, _prover(ready, active.name))
    golden_ns = time.perf_counter_ns() - started
    plain = replace(active, pick="first", variant=None, interpreter=None)
    slot = pick_variant(plain, manifest, results, pick)
    ready.store.write_state(replace(state, active=slot))
    return InstallResult(changed=True, active=slot, previous=state.previous, golden_ns=golden_ns, golden=results)


class _Install:
    """One install, step by step."""

    def __init__(
        self, ready: Ready, package: Package, manifest: Manifest, folder: Path, pick: str, progress: Progress
    ) -> None:
        self.ready, self.store = ready, ready.store
        self.package, self.manifest, self.folder = package, manifest, folder
        self.pick, self.progress = pick, progress

    def apply(self, state: SlotState) -> tuple[InstallResult, int]:
        encoded = encode(self.package.manifest)
        (self.folder / MANIFEST).write_bytes(encoded)
        files = {MANIFEST: len(encoded)} | {payload.path: payload.size_bytes for payload in self.manifest.payloads}
        target = inactive(state)
        self.store.check_space(target, on_disk_bytes(sum(files.values()), len(files)))
        whole = self.manifest == self.package.manifest
        slot = Slot(
            name=target,
            package_sha256=self.package.sha256,
            package_name=self.manifest.name,
            manifest_sha256=hashlib.sha256(encoded).hexdigest(),
            installed_at_ns=self._now_ns(),
            variants=None if whole else tuple(variant.name for variant in self.manifest.variants),
        )
        started = time.perf_counter_ns()
        self.progress("clear", 0, 0)
        cleared = replace(state, previous=None, trial=None)
        if cleared != state:  # the files of the way back are about to go
            self.store.write_state(cleared)
        self.store.clear(target)
        try:
            upload_from = time.perf_counter_ns()
            self.store.fill(target, self.folder, files, lambda done, total: self.progress("upload", done, total))
            written = time.perf_counter_ns()
            self.progress("read back", 0, 0)
            self.store.verify(slot)
            read_back = time.perf_counter_ns()
            self.progress("golden vectors", 0, 0)
            results = check_golden(self.folder, self.manifest, _prover(self.ready, target))
            proven = time.perf_counter_ns()
            slot = pick_variant(slot, self.manifest, results, self.pick)
        except FerrymanError:
            with contextlib.suppress(FerrymanError):
                self.store.clear(target)
            raise
        self.progress("activate", 0, 0)
        new_state = activated(cleared, slot)
        self.store.write_state(new_state)
        return InstallResult(
            changed=True,
            active=slot,
            previous=new_state.previous,
            written_bytes=sum(files.values()),
            write_ns=written - started,
            read_back_ns=read_back - written,
            golden_ns=proven - read_back,
            activate_ns=time.perf_counter_ns() - proven,
            golden=results,
        ), written - upload_from

    def _now_ns(self) -> int:
        """The phone's wall clock."""
        return epoch_ns(self.ready.phone.do("date +%s"))


def _prover(ready: Ready, slot: str) -> Prover[PhoneSession]:
    return phone_prover(
        ready.runner, Work(ready.store), f"slots/{slot}", lambda variant: usable_on(ready.facts, ready.isa, variant)
    )


def rollback_phone(device: AdbDevice, *, connect: Connect = connect_phone) -> Slot:
    """Let a phone's previously active package serve again.

    Raises:
        CallerError: no adb here, or which phone is not said.
        LinkError: the phone is not there, or the link broke.
        DeviceError: there is no previous package that is intact, or someone is at work there.
    """
    with contextlib.closing(connect(device)) as link:
        phone = Phone(device.name, link, device.root)
        with locked(phone) as lock:
            store = PhoneStore(phone, lock)
            store.open()
            try:
                state = rolled_back(store.read_state(), None)
                assert state.active  # noqa: S101  # rolled_back says so, or raises
                store.verify(state.active)
                store.write_state(state)
            finally:
                with contextlib.suppress(FerrymanError):
                    store.close()
    return state.active

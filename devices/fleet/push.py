"""Carry a package to a device and have it installed there, have it serve for good, or the one before again."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ferryman.devices.fleet.inventory import AdbDevice, Device, connect
from ferryman.devices.transport.base import CompletedCommand, Transport
from ferryman.runtime.contracts.errors import CallerError, DeviceError, WireError, from_wire
from ferryman.runtime.contracts.record import Record, decode
from ferryman.runtime.contracts.slot import Slot, SlotState, parse_pick
from ferryman.runtime.install import InstallResult, Prepared
from ferryman.runtime.package import open_package

Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done and the bytes there are to do (0, 0 where a step counts none)."""
R = TypeVar("R", bound=Record)

_PREPARE_TIMEOUT_S = 60.0
_ROLLBACK_TIMEOUT_S = 60.0
_NOT_FOUND = 127
_TAIL_CHARS = 500


class PushResult(Record):
    """What a push did, and how long each part took."""

    device: str
    package_sha256: str
    package_bytes: int
    active: Slot
    connect_ns: int
    upload_ns: int = 0
    install: InstallResult | None = None
    """None: the device had the package active already, picked so, and nothing was done."""

    @property
    def upload_bytes_per_s(self) -> float | None:
        """Throughput of the upload; None where there was none."""
        return self.package_bytes / self.upload_ns * 1e9 if self.upload_ns else None


def push(
    package: Path | str,
    device: Device,
    *,
    pick: str = "first",
    progress: Progress = lambda _step, _done, _total: None,
    install_timeout_s: float = 600.0,
    runner: Path | None = None,
) -> PushResult:
    """Verify a package here, upload it, and install it there; whatever fails, the device's old slot serves.

    Args:
        package: the file.
        device: where to.
        pick: which variant answers requests that name none (see `parse_pick`).
        progress: told of every step.
        install_timeout_s: for the device's part.
        runner: of a phone, the native runner's bundle; None: see `ferryman.devices.fleet.phone.runner.find_bundle`.

    Raises:
        PackageError: the package is damaged; the device was not bothered.
        CallerError: no such file or pick, or a key or known-hosts file that cannot be used.
        LinkError: the device cannot be reached, or the link broke; pushing again is safe.
        DeviceError: the device lacks ferryman, room, or an interpreter, or an install is at work there.
        ParityError: the device computes something else than the model.
    """
    parse_pick(pick)
    progress("verify", 0, 0)
    package = Path(package)
    with open_package(package) as opened:
        sha256 = opened.sha256
    size_bytes = package.stat().st_size
    if isinstance(device, AdbDevice):
        return _push_to_phone(package, device, pick, progress, runner)
    progress("connect", 0, 0)
    started = time.perf_counter_ns()
    with connect(device) as transport:
        connect_ns = time.perf_counter_ns() - started
        picks = () if pick == "first" else ("--pick", pick)  # an older ferryman knows the first alone
        prepare = ("prepare", sha256, str(size_bytes))
        prepared = ask(transport, device, prepare, Prepared, timeout_s=_PREPARE_TIMEOUT_S)
        if prepared.active:
            repicked: InstallResult | None = None
            if prepared.active.pick != pick:
                progress("pick on the device", 0, 0)
                repicked = ask(transport, device, ("repick", *picks), InstallResult, timeout_s=install_timeout_s)
            return PushResult(
                device=device.name,
                package_sha256=sha256,
                package_bytes=size_bytes,
                active=repicked.active if repicked else prepared.active,
                connect_ns=connect_ns,
                install=repicked,
            )
        upload_started = time.perf_counter_ns()
        _upload(transport, package, prepared.upload_to, progress)
        upload_ns = time.perf_counter_ns() - upload_started
        progress("install on the device", 0, 0)
        words = ("install", *picks, prepared.upload_to)
        installed = ask(transport, device, words, InstallResult, timeout_s=install_timeout_s)
    return PushResult(
        device=device.name,
        package_sha256=sha256,
        package_bytes=size_bytes,
        active=installed.active,
        connect_ns=connect_ns,
        upload_ns=upload_ns,
        install=installed,
    )


def _push_to_phone(package: Path, device: AdbDevice, pick: str, progress: Progress, runner: Path | None) -> PushResult:
    from ferryman.devices.fleet.phone.push import push_to_phone

    with open_package(package) as opened:
        pushed = push_to_phone(opened, device, pick=pick, bundle_file=runner, progress=progress)
        return PushResult(
            device=device.name,
            package_sha256=opened.sha256,
            package_bytes=pushed.install.written_bytes if pushed.install else package.stat().st_size,
            active=pushed.active,
            connect_ns=pushed.connect_ns,
            upload_ns=pushed.upload_ns,
            install=pushed.install,
        )


def rollback(device: Device) -> Slot:
    """Let a device's previously active package serve again; returns its slot.

    Raises:
        CallerError: a key or known-hosts file cannot be used.
        LinkError: the device cannot be reached, or the link broke.
        DeviceError: the device lacks ferryman, or a previous package that is intact, or an install is at work there.
    """
    if isinstance(device, AdbDevice):
        from ferryman.devices.fleet.phone.push import rollback_phone

        return rollback_phone(device)
    with connect(device) as transport:
        state = ask(transport, device, ("rollback",), SlotState, timeout_s=_ROLLBACK_TIMEOUT_S)
    if state.active is None:
        raise DeviceError(f"{device.name} rolled back to nothing; see that ferryman there is of this version")
    return state.active


def confirm(device: Device) -> Slot:
    """Let the package that serves on trial serve for good; returns its slot. Nothing changes where none is on trial.

    Raises:
        CallerError: it is a phone, or a key or known-hosts file cannot be used.
        LinkError: the device cannot be reached, or the link broke.
        DeviceError: the device lacks ferryman or a package, an install is at work, or another package came on trial.
    """
    if isinstance(device, AdbDevice):
        raise CallerError(f"{device.name} is a phone: what is pushed there serves for good at once")
    with connect(device) as transport:
        state = ask(transport, device, ("confirm",), SlotState, timeout_s=_ROLLBACK_TIMEOUT_S)
    if state.active is None:
        raise DeviceError(f"no package is active on {device.name}; push one")
    if state.trial is not None:
        raise DeviceError(f"{device.name}: another package came on trial in between; look at it, then confirm again")
    return state.active


def _upload(transport: Transport, package: Path, remote: str, progress: Progress) -> None:
    try:
        transport.put(package, remote, lambda done, total: progress("upload", done, total))
    except DeviceError:  # the link lives: do not leave a full disk full
        transport.run(("rm", "-f", remote), timeout_s=_PREPARE_TIMEOUT_S)
        raise


def ask(transport: Transport, device: Device, words: Sequence[str], kind: type[R], *, timeout_s: float) -> R:
    """Have the device's ferryman do something (command, then its arguments), and read its answer or raise its error."""
    argv = (*shlex.split(device.command), *words[0].split(), "--root", str(device.root), "--json", *words[1:])
    ended = transport.run(argv, timeout_s=timeout_s)
    try:
        if ended.exit_status == 0:
            return decode(ended.stdout, kind)
        error = from_wire(decode(ended.stdout, WireError))
    except ValueError:
        raise DeviceError(_describe(device, ended)) from None
    raise type(error)(f"{device.name}: {error}")


def _describe(device: Device, ended: CompletedCommand) -> str:
    said = (ended.stderr or ended.stdout).decode(errors="replace").strip()[-_TAIL_CHARS:]
    if ended.exit_status == _NOT_FOUND:
        return (
            f"{device.name} has no `{device.command}` ({said}); install ferryman there, or set `command` in the "
            "devices file to where it is"
        )
    return (
        f"`{device.command}` on {device.name} did not answer as ferryman does (exit status {ended.exit_status}): "
        f"{said or 'it said nothing'}; see that ferryman there is installed and of this version"
    )

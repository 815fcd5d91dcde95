"""Measure a package on a device: on this machine directly, elsewhere by asking the agent that serves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ferryman.devices.broker import BrokerConfig, parse_broker
from ferryman.devices.fleet.client import PROFILE_TIMEOUT_S, AgentClient
from ferryman.devices.fleet.inventory import AdbDevice, Device, LocalDevice, find_device, read_devices
from ferryman.profiler.runner import asked_s, profile_package
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.package import open_package


def profile(
    package: Path | str,
    device: Device | str,
    spec: ProfileSpec | None = None,
    *,
    inputs: Path | None = None,
    timeout_s: float | None = None,
    runner: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Measurement, ...]:
    """Measure every variant on every interpreter the device has for it, or those `spec` names.

    A device other than `local` must serve the package (push it first) and run an agent; the measurements also reach
    the collector through its telemetry. A phone runs no agent: where it has a broker, they are sent from here in its
    name.

    Args:
        package: file of the package.
        device: its name in the usual devices file, `local`, or as `find_device` finds it.
        spec: what to run and how long.
        inputs: `local` only: further input sets for `spec.layers`, an .npz or .npy file.
        timeout_s: of the device's answer; None: ten minutes and whatever the spec itself asks it to spend.
        runner: of a phone, the native runner's bundle; None: see `ferryman.devices.fleet.phone.runner.find_bundle`.
        progress: told what begins.

    Raises:
        PackageError: the package is damaged.
        CallerError: no such file, the spec names what does not exist or more runs than the device takes, or the device
            has no broker in the devices file.
        DeviceError: the device serves another package, or cannot run it.
        LinkError: the broker or the device does not answer.
    """
    spec = spec or ProfileSpec()
    device = find_device(read_devices(), device) if isinstance(device, str) else device
    if isinstance(device, LocalDevice):
        return profile_package(package, spec, progress=progress, inputs=inputs)
    if inputs is not None:
        raise CallerError(f"further inputs do not travel to {device.name!r}; leave them out, or profile on `local`")
    if isinstance(device, AdbDevice):
        return _profile_phone(package, device, spec, runner, progress)
    with open_package(package) as opened:
        sha256 = opened.sha256
        pairs = sum(len(variant.requires.interpreters) for variant in opened.manifest.variants)
    with AgentClient(broker_of(device), device.name) as agent:
        progress(f"asking {device.name}")
        return agent.profile(sha256, spec, timeout_s=timeout_s or PROFILE_TIMEOUT_S + pairs * asked_s(spec))


def _profile_phone(
    package: Path | str, device: AdbDevice, spec: ProfileSpec, runner: Path | None, progress: Callable[[str], None]
) -> tuple[Measurement, ...]:
    from ferryman.devices.fleet.phone.profile import profile_on_phone
    from ferryman.devices.fleet.phone.relay import relay_measurements

    with open_package(package) as opened:
        found = profile_on_phone(opened, device, spec, bundle_file=runner, progress=progress)
    if device.broker is not None:
        progress(relay_measurements(device, found))
    return found


def broker_of(device: Device) -> BrokerConfig:
    """The broker a device's agent talks to.

    Raises:
        CallerError: the devices file names none, or no URL.
    """
    if device.broker is None:
        raise CallerError(
            f'device {device.name!r} has no broker in the devices file; add broker = "mqtt://HOST" to its table'
        )
    return parse_broker(device.broker)

"""How facts come: from this machine, over SSH, over adb, or from the device's agent at its broker."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import NamedTuple

from ferryman.devices.fleet.facts.bare import bare_command, parse_bare
from ferryman.devices.fleet.inventory import AdbDevice, Device, LocalDevice, SshDevice, connect
from ferryman.devices.transport.base import CompletedCommand, Transport
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RequestTimeout
from ferryman.runtime.contracts.facts import DeviceFacts, Interpreter
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Unavailable, decode

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
_SAID_CHARS = 200


class Answer(NamedTuple):
    """What a way brought."""

    facts: DeviceFacts
    note: str = ""
    """What is to be known of how it came about."""


Way = Callable[[Device, float], Answer]
"""(device, seconds) -> answer; raises an error of the tree."""


def ways_of(device: Device) -> tuple[tuple[str, Way], ...]:
    """Every way that the devices file gives to a device, the one that tells most first."""
    if isinstance(device, LocalDevice):
        first: tuple[tuple[str, Way], ...] = (("local", over_shell),)
    elif isinstance(device, SshDevice):
        first = (("ssh", over_shell),)
    elif isinstance(device, AdbDevice):
        first = (("adb", over_adb),)
    else:
        first = ()
    return (*first, ("mqtt", over_mqtt)) if device.broker else first


def over_shell(device: Device, timeout_s: float) -> Answer:
    """Call ferryman there, over SSH or here; where there is none that knows, ask the bare shell.

    Raises:
        LinkError: the device cannot be reached, or one side does not trust the other.
        CallerError: a key or known-hosts file cannot be used.
        DeviceError: not even a shell answers.
    """
    with connect(device, timeout_s=timeout_s) as transport:
        argv = (*shlex.split(device.command), "facts", "--root", str(device.root), "--json")
        ended = transport.run(argv, timeout_s=timeout_s)
        if ended.exit_status == 0:
            try:
                return Answer(decode(ended.stdout, DeviceFacts))
            except ValueError as error:
                why = f"`{device.command} facts` there tells what is not understood here: {error}"
        else:
            why = _why_no_ferryman(device, ended)
        return Answer(_bare(transport, device, why, timeout_s), why)


def _bare(transport: Transport, device: Device, why: str, timeout_s: float) -> DeviceFacts:
    argv, mark = bare_command(device.root)
    said = transport.run(argv, timeout_s=timeout_s).stdout
    try:
        return parse_bare(said, mark, device.root, why)
    except DeviceError as error:
        raise DeviceError(f"{why}; and {error}") from error


def _why_no_ferryman(device: Device, ended: CompletedCommand) -> str:
    said = (ended.stderr or ended.stdout).decode(errors="replace").strip()[-_SAID_CHARS:]
    if ended.exit_status in {_NOT_FOUND, _NOT_EXECUTABLE}:
        return f"no `{device.command}` there; provision the device, or set `command` in the devices file"
    if "No such command" in said:
        return f"`{device.command}` there is too old to tell facts; install this version there"
    return f"`{device.command} facts` there ended with exit status {ended.exit_status}: {said or 'it said nothing'}"


def over_adb(device: Device, timeout_s: float) -> Answer:
    """Ask a phone's shell, and its runner.

    Raises:
        CallerError: no adb here, or which phone is not said.
        LinkError: the phone is not there, or does not let us in.
        DeviceError: its shell answers in another way.
    """
    from ferryman.devices.fleet.phone.facts import phone_facts

    if not isinstance(device, AdbDevice):
        raise CallerError(f"{device.name} is not reached over adb")
    return Answer(phone_facts(device, timeout_s))


def over_mqtt(device: Device, timeout_s: float) -> Answer:
    """Ask the device's agent; one that is too old, or busy, tells what its status holds.

    Raises:
        LinkError: no broker, or the device is offline.
        RequestTimeout: no answer.
        IdentityError: it takes signed commands only, and no key is named here.
    """
    from ferryman.devices.fleet.client import AgentClient
    from ferryman.devices.fleet.profile import broker_of

    with AgentClient(broker_of(device), device.name) as client:
        try:
            return Answer(client.facts(timeout_s=timeout_s / 2))
        except RequestTimeout as error:
            note = f"its agent is busy ({error}); this is what its status tells"
        except CallerError as error:
            if "cannot be read" not in str(error):
                raise
            note = "its agent is too old to tell facts; this is what its status tells"
        status = client.status(timeout_s=timeout_s / 2)
    return Answer(facts_of_status(status, device, note), note)


def facts_of_status(status: Status, device: Device, why: str) -> DeviceFacts:
    """The few facts that a status holds; what it has not is Unavailable because of `why`."""
    unknown = Unavailable(reason=why)
    told = status.standing
    return DeviceFacts(
        model=told.get("device_model") or status.model or unknown,
        soc=told.get("soc") or unknown,
        machine=told.get("machine", ""),
        cores=unknown,
        isa=tuple(told.get("isa", "").split()),
        memory_bytes=unknown,
        memory_available_bytes=unknown,
        os=unknown,
        kernel=told.get("kernel", ""),
        libc=unknown,
        python=told.get("python") or unknown,
        ferryman=status.ferryman or unknown,
        kernels=unknown,
        interpreters=tuple(Interpreter(name=n, version=v) for n, v in status.interpreters.items()),
        sensors=(),
        root=str(device.root),
        free_bytes=unknown,
        root_writable=unknown,
        clock_synchronized=unknown,
    )

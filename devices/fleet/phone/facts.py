"""What a phone is, for `ferryman devices probe`: its shell tells, and the runner where a push has brought one."""

from __future__ import annotations

import contextlib
import shlex

from msgspec.structs import replace

from ferryman.devices.fleet.facts.bare import bare_command, parse_bare
from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.phone import Connect, Phone, connect_phone
from ferryman.devices.fleet.phone.runner import PROGRAM, RunnerFacts
from ferryman.runtime.contracts.facts import DeviceFacts, Interpreter
from ferryman.runtime.contracts.record import Unavailable, decode

_NO_RUNNER = "ferryman's runner is not on the phone yet: `ferryman push` brings it"


def phone_facts(device: AdbDevice, timeout_s: float, *, connect: Connect = connect_phone) -> DeviceFacts:
    """Ask a phone; nothing is written there.

    Raises:
        CallerError: no adb here, or which phone is not said.
        LinkError: the phone is not there, or does not let us in.
        DeviceError: its shell answers in another way.
    """
    argv, mark = bare_command(device.root)
    with contextlib.closing(connect(device)) as link:
        phone = Phone(device.name, link, device.root)
        said = link.shell(shlex.join(argv), timeout_s=timeout_s).stdout
        told = phone.ask(f'for F in "$R"/runner/*/{PROGRAM}; do if [ -x "$F" ]; then "$F" facts; break; fi; done')
    facts = parse_bare(said, mark, device.root, _NO_RUNNER)
    try:
        runner = decode(told.stdout, RunnerFacts)
    except ValueError:
        return facts
    return replace(
        facts,
        python=Unavailable(reason="a phone has none; the native runner takes its place"),
        ferryman=runner.runner,
        kernels=runner.kernels_isa,
        operators=runner.kernels_version,
        interpreters=(Interpreter(name="executorch", version=runner.executorch),),
    )

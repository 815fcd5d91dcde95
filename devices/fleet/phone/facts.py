"""What a phone is, for `ferryman devices probe`: its shell tells, and the runner where a push has brought one."""

from __future__ import annotations

import contextlib
import shlex

from msgspec.structs import replace

from ferryman.devices.fleet.facts.bare import bare_command, parse_bare
from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.phone import Connect, Phone, connect_phone
from ferryman.devices.fleet.phone.runner import PROGRAM, RunnerFacts
from ferryman.devices.fleet.phone.snapshot import take
from ferryman.profiler.samplers.android import open_phone
from ferryman.profiler.samplers.odpm import OdpmSampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.facts import DeviceFacts, Interpreter, Sensor
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
        sensors = _sensors(phone)
        told = phone.ask(f'for F in "$R"/runner/*/{PROGRAM}; do if [ -x "$F" ]; then "$F" facts; break; fi; done')
    facts = parse_bare(said, mark, device.root, _NO_RUNNER)
    facts = replace(facts, sensors=sensors)
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


def _sensors(phone: Phone) -> tuple[Sensor, ...]:
    """What a profile would take."""

    def shell(line: str) -> str:
        try:
            return phone.do(line)
        except DeviceError as error:
            raise SensorError(str(error)) from error

    found = open_phone(phone.link.serial, shell)
    if isinstance(found, Unavailable):
        energy = Sensor(name="battery", measures="energy", available=False, detail=found.reason)
    else:
        source = found.source
        found.close()
        name = "odpm" if isinstance(found, OdpmSampler) else "battery"
        detail = f"{source.name}: {', '.join(source.rails)}"
        energy = Sensor(name=name, measures="energy", available=True, detail=detail)
    heat = take(phone).temperatures()
    if isinstance(heat, Unavailable):
        return energy, Sensor(name="temperature", measures="temperature", available=False, detail=heat.reason)
    return energy, *(
        Sensor(name=one.source, measures="temperature", available=True, detail=f"{one.value:g} degrees Celsius now")
        for one in heat
    )

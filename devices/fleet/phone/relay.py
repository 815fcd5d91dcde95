"""A phone's telemetry, sent from here in its name: the outbox, publisher and presence of an agent, without its slots.

HOME/NAME/outbox.sqlite     as in an agent's root; HOME: FERRYMAN_PHONES, else ~/.local/share/ferryman/phones
HOME/NAME/identity          where `mqtts` wants the phone's own certificate
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ferryman.devices.agent.agent import SESSION_S
from ferryman.devices.agent.modes import Mode
from ferryman.devices.agent.outbox import FILE, Outbox
from ferryman.devices.agent.presence import Presence
from ferryman.devices.agent.publisher import Publisher
from ferryman.devices.agent.recorder import Recorder, as_record
from ferryman.devices.agent.sampler import live
from ferryman.devices.agent.tally import significant
from ferryman.devices.broker import parse_broker
from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.phone import Connect, Phone, connect_phone
from ferryman.devices.fleet.phone.snapshot import Snapshot, take
from ferryman.devices.fleet.phone.store import read_state
from ferryman.devices.identity import with_identity
from ferryman.devices.mqtt import Link, Message
from ferryman.devices.topics import check_name
from ferryman.profiler.conditions import kind_of_device
from ferryman.profiler.standing import standing
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, FerrymanError
from ferryman.runtime.contracts.measurement import Conditions, Measurement
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.slot import Slot
from ferryman.runtime.contracts.telemetry import Sample
from ferryman.runtime.held import held

log = logging.getLogger(__name__)

HOME_VARIABLE = "FERRYMAN_PHONES"
_HOME = "~/.local/share/ferryman/phones"
CONFIRM_S = 20.0
"""How long whoever profiles waits for the collector's receipt; what it has not confirmed waits on this disk."""
_POLL_S = 0.1
_LOOK_S = 0.5
_PATIENCE_S = 5.0
"""Records that have waited for so long are told of."""
_NOT_TAKEN = {
    "inferences": "a phone serves nothing by itself",
    "latency_ms": "a phone serves nothing by itself; `ferryman profile` measures it",
    "cpu_percent": "not taken on a phone",
    "power_w": "`ferryman profile` measures it",
}


class About(Record):
    """What a phone's status tells that its shell told."""

    conditions: Conditions
    package_sha256: str | None = None
    package_name: str | None = None
    interpreters: dict[str, str] = msgspec.field(default_factory=dict)


def relay_folder(name: str) -> Path:
    """Where a phone's outbox is on this machine.

    Raises:
        CallerError: the name cannot stand in a topic, or the folder begins at the home of nobody.
    """
    check_name(name)
    try:
        return (Path(os.environ.get(HOME_VARIABLE) or _HOME).expanduser() / name).absolute()
    except RuntimeError as error:
        raise CallerError(f"{HOME_VARIABLE}: {error}; name a folder there") from error


class _PhonePresence(Presence):
    """A phone's status, whoever sends it."""

    about: About | None = None

    def status(self, slot: Slot | None, answers: str | None) -> Status:
        """See `Presence.status`; of the phone and not of this machine."""
        told = super().status(slot, answers)
        if self.about is None:
            return replace(told, interpreters={}, standing={})
        return replace(
            told,
            package_sha256=self.about.package_sha256,
            package_name=self.about.package_name,
            interpreters=self.about.interpreters,
            standing=standing(self.about.conditions),
        )

    def farewell(self) -> Message:
        """A phone that is unplugged did not go on purpose."""
        return self._dead()


class Relay(Closing):
    """One phone's connection to its broker; `there` says whether the phone is."""

    def __init__(self, device: AdbDevice, about: About) -> None:
        """Open the phone's outbox here; nothing is connected yet.

        Raises:
            CallerError: the phone has no broker in the devices file, or no name for a topic.
            DeviceError: this disk cannot hold the outbox, or another relay of this phone is at work here.
            IdentityError: its certificate here is damaged.
        """
        if device.broker is None:
            raise CallerError(
                f'{device.name} has no broker in the devices file; add broker = "mqtt://HOST" to its table'
            )
        self.device, self.folder = device, relay_folder(device.name)
        self.there = True
        self._stack = contextlib.ExitStack()
        try:
            self._stack.enter_context(_only_one(self.folder, device.name))
            self.outbox = Outbox(self.folder / FILE)
            self._stack.callback(self.outbox.close)
            self.recorder = Recorder(self.outbox)
            model = kind_of_device(about.conditions)
            self._presence = _PhonePresence(device.name, device.labels, model, self.outbox, self.recorder)
            self._presence.about = about
            self.link = Link(
                with_identity(parse_broker(device.broker), self.folder),
                f"ferryman-agent-{device.name}",
                will=self._presence.death,
                session_expiry_s=SESSION_S,
            )
            self.link.on_ready(self.announce)
            self.publisher = Publisher(
                self.outbox, device.name, self.link, mode=self._mode, farewell=self._presence.farewell
            )
        except BaseException:
            self._stack.close()
            raise

    def start(self) -> None:
        """Connect, and send what waits."""
        self.link.start()
        self._stack.callback(self.link.stop)
        self.publisher.start()
        self._stack.callback(self.publisher.stop)

    def announce(self) -> None:
        """Tell that the phone is there, and how."""
        self._presence.announce(self.link, None, None)

    def know(self, about: About) -> None:
        """What its status tells from now on; told at once where it is news."""
        before, self._presence.about = self._presence.about, about
        if before is None or _lasting(before) != _lasting(about):
            self.announce()

    def _mode(self) -> Mode:
        return "full" if self.there else "offline"

    def close(self) -> None:
        """Publish the phone's death, and disconnect; what is not confirmed waits."""
        self._stack.close()


def _lasting(about: About) -> tuple[object, ...]:
    return about.package_sha256, about.interpreters, standing(about.conditions)


def relay_measurements(device: AdbDevice, found: Sequence[Measurement], confirm_s: float = CONFIRM_S) -> str:
    """Put measurements on record in the phone's name, and send them; in words, what became of them.

    Raises:
        CallerError, IdentityError: see `Relay`.
        DeviceError: this disk cannot hold the outbox.
    """
    first = found[0]
    about = About(
        conditions=first.after,
        package_sha256=first.package_sha256,
        package_name=first.package_name,
        interpreters={one.interpreter: one.interpreter_version for one in found},
    )
    records = [("measurement", as_record(one)) for one in found]
    try:
        relay = Relay(device, about)
    except _AnotherRelayError:
        with contextlib.closing(Outbox(relay_folder(device.name) / FILE)) as outbox:
            Recorder(outbox).put(records)
        return f"{len(found)} measurements are with the relay of {device.name} that runs here"
    with relay:
        relay.recorder.put(records)
        relay.start()
        deadline = time.monotonic() + confirm_s
        while (left := relay.outbox.counts().records) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        broker = relay.link.broker.address
        if not left:
            return f"the collector at broker {broker} has {len(found)} measurements as {device.name}'s"
        why = relay.link.problem or "no collector has confirmed them yet"
    return f"{left} records of {device.name} wait in {relay.folder} ({why}); `ferryman relay` sends them"


def run_relay(
    device: AdbDevice,
    sample_s: float,
    stop: threading.Event,
    *,
    connect: Connect = connect_phone,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Sample a phone until `stop` is set; while it is away its status says so.

    Args:
        device: the phone.
        sample_s: how often.
        stop: ends it.
        connect: opens the way to it.
        say: told when records begin to arrive, or to wait.

    Raises:
        CallerError, DeviceError, IdentityError: see `Relay`; also where the phone cannot be reached at first.
        LinkError: as that.
    """
    first, about = _look(device, connect)
    snapshot: Snapshot | None = first
    with Relay(device, about) as relay:
        relay.start()
        tell = live(relay.link, device.name, sample_s)
        begun, said = time.monotonic(), ""
        news = _News(relay, say)
        while True:
            period_s, begun = time.monotonic() - begun, time.monotonic()
            if snapshot is not None:
                sample = sample_of(snapshot, max(period_s, 0.0), relay.outbox, about.package_sha256)
                with contextlib.suppress(CallerError):
                    relay.recorder.put([("sample", sample)])
                relay.publisher.wake()
                tell(sample)
            if news.wait(stop, sample_s):
                return
            try:
                snapshot, about = _look(device, connect)
                relay.there, said = True, ""
                relay.know(about)
            except FerrymanError as error:
                snapshot, relay.there = None, False
                if str(error) != said:
                    log.warning("%s", error)
                said = str(error)


class _News:
    """Tells where records are, once each time that changes."""

    def __init__(self, relay: Relay, say: Callable[[str], None]) -> None:
        self._relay, self._say = relay, say
        self._told, self._arrived = "", time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Wait, and tell; whether to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if stop.wait(min(left, _LOOK_S)):
                return True
            with contextlib.suppress(DeviceError):
                self._look()
        return stop.is_set()

    def _look(self) -> None:
        link, now, news = self._relay.link, time.monotonic(), self._told
        if waiting := self._relay.outbox.counts().records:
            if now - self._arrived > _PATIENCE_S:
                news = f"records wait on this machine: {link.problem or 'no collector has confirmed them yet'}"
        else:
            self._arrived, news = now, f"the collector at {link.broker.address} has all records"
        if news != self._told:
            self._say(f"{news} ({waiting})" if waiting else news)
            self._told = news


def _look(device: AdbDevice, connect: Connect) -> tuple[Snapshot, About]:
    with contextlib.closing(connect(device)) as link:
        phone = Phone(device.name, link, device.root)
        snapshot = take(phone)
        active = read_state(phone).active
    return snapshot, About(
        conditions=snapshot.conditions({}),
        package_sha256=active.package_sha256 if active else None,
        package_name=active.package_name if active else None,
    )


def sample_of(snapshot: Snapshot, period_s: float, outbox: Outbox, package_sha256: str | None) -> Sample:
    """What a moment of a phone says, under the names of other devices' samples.

    `thermal_status` is Android's own (0 none to 6 shutdown), `battery_c` the temperature of its battery.
    """
    now = snapshot.conditions({})
    temperatures, throttled = now.temperatures_c, now.throttled
    used: float | Unavailable
    if isinstance(now.memory_total_bytes, Unavailable) or isinstance(now.memory_available_bytes, Unavailable):
        used = Unavailable(reason="/proc/meminfo does not tell")
    else:
        used = (now.memory_total_bytes - now.memory_available_bytes) / 1e6
    found: dict[str, float | Unavailable] = {
        "temperature_c": temperatures
        if isinstance(temperatures, Unavailable)
        else max(reading.value for reading in temperatures),
        "clock_mhz": now.clocks_mhz
        if isinstance(now.clocks_mhz, Unavailable)
        else math.fsum(now.clocks_mhz) / len(now.clocks_mhz),
        "throttled": throttled if isinstance(throttled, Unavailable) else float(bool(throttled)),
        "battery_percent": snapshot.battery_percent,
        "battery_c": snapshot.battery_c,
        "thermal_status": snapshot.thermal_status,
        "memory_used_mb": used,
    }
    with contextlib.suppress(DeviceError):
        counts = outbox.counts()
        found |= {"outbox_records": counts.records, "outbox_mb": counts.bytes / 1e6}
    missing = {name: value.reason[:160] for name, value in found.items() if isinstance(value, Unavailable)}
    return Sample(
        period_s=significant(period_s),
        values={name: significant(value) for name, value in found.items() if not isinstance(value, Unavailable)},
        unavailable=_NOT_TAKEN | missing,
        package_sha256=package_sha256,
    )


class _AnotherRelayError(DeviceError):
    """Another process of this machine sends for the phone."""


@contextlib.contextmanager
def _only_one(folder: Path, name: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "relay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DeviceError(f"cannot make {folder}: {error.strerror}; name another folder in {HOME_VARIABLE}") from error
    with held(lock, _AnotherRelayError(f"another relay of {name} is at work on this machine; stop it first")):
        yield

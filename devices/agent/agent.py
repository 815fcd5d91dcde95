"""What runs on the device: serves the active slot over MQTT, and sends what is in the outbox."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ferryman.devices import topics
from ferryman.devices.agent.clock import read_clock
from ferryman.devices.agent.commands import CommandGuard
from ferryman.devices.agent.desk import Body, Desk
from ferryman.devices.agent.health import HealthWatch
from ferryman.devices.agent.instruments import Instruments, InstrumentsConfig, Run, Wires
from ferryman.devices.agent.logs import LogRecords
from ferryman.devices.agent.modes import Modes
from ferryman.devices.agent.presence import Presence
from ferryman.devices.agent.publisher import Publisher
from ferryman.devices.agent.ready import Limits, read_now, why_not_yet
from ferryman.devices.agent.recorder import Recorder, as_record
from ferryman.devices.agent.serving import Serving
from ferryman.devices.agent.spending import TelemetryConfig
from ferryman.devices.agent.stepdown import StepDown
from ferryman.devices.agent.storage import only_one, open_outbox, why_not_writable
from ferryman.devices.agent.systemd import Service
from ferryman.devices.agent.tally import ServedTally
from ferryman.devices.agent.updating import FINAL, Hands, Updating
from ferryman.devices.agent.upkeep import Upkeep
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.expiry import watching
from ferryman.devices.identity import with_identity
from ferryman.devices.labels import check_labels
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.devices.sealed import OVERHEAD_MAX_BYTES
from ferryman.profiler.conditions import kind_of_device, read_conditions
from ferryman.profiler.drift import PERIOD_S, DriftMonitor
from ferryman.runtime.alive import beat
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    IdentityError,
    LinkError,
)
from ferryman.runtime.contracts.messages import (
    FactsReply,
    FactsRequest,
    InferRequest,
    ProfileReply,
    ProfileRequest,
    Request,
)
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.rollout import MESSAGE_MAX_BYTES, Desired, Health, Reported
from ferryman.runtime.contracts.slot import SlotState
from ferryman.runtime.slots import SlotStore

if TYPE_CHECKING:
    from ferryman.devices.agent.renewal import Renewal
    from ferryman.devices.agent.update.config import UpdateConfig

log = logging.getLogger(__name__)

_METERS = "FERRYMAN_METERS"
"""Environment: modules, with commas between, that a profile asked for from afar may name as its meter."""
_METER_PASSWORD = "FERRYMAN_METER_PASSWORD"  # noqa: S105  # the name of the variable that holds it
POLL_S = 1.0
"""How late a newly activated slot may be noticed."""
STOP_GRACE_S = 5.0
"""How long a request under way may take to end once the agent is told to stop."""
ANEW_S = 60.0
STORAGE_EVERY_S = 5.0
"""How often a disk that takes nothing is looked at."""
_CLOCK_FLOOR_NS = 1_750_000_000 * 10**9
"""An earlier clock was never set."""
SESSION_S = 300
"""How long the broker keeps requests and receipts while the link is down (MQTT 5)."""
PACKET_MAX_BYTES = topics.REQUEST_MAX_BYTES + 1024
"""With the topic and what MQTT adds."""


@dataclass(frozen=True)
class AgentConfig:
    """Everything an agent must be told."""

    device: str
    root: Path
    broker: BrokerConfig
    confirm: Literal["collector", "broker"] = "collector"
    drift_s: float = PERIOD_S
    """Every so often, statistics of what was served become a telemetry record; 0: never."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What queries find this device by."""
    update: UpdateConfig | None = None
    """Where updates come from; None: only by push."""
    mains: bool = False
    """Update only while something supplies power."""
    idle_s: float = 0.0
    """Update only when nobody asked for an inference for so long."""
    instruments: InstrumentsConfig = field(default_factory=InstrumentsConfig)
    """What is shown of the device."""
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    """What telemetry may cost, and how long it waits."""


class Agent:
    """One device's agent; `run` returns when `stop` is set."""

    def __init__(self, config: AgentConfig) -> None:
        """Open the outbox and describe the connection; nothing is connected yet.

        Raises:
            CallerError: the device's name cannot stand in a topic, or `drift_s` is out of range.
            IdentityError: the identity at the root is another device's, or damaged; or an operator's key is none.
            DeviceError: the root cannot be made, or the outbox not be opened.
        """
        self._config = config
        check_labels(config.labels)
        self._drift = DriftMonitor(config.drift_s)
        self._kind = kind_of_device(read_conditions({}))
        self._outbox = open_outbox(config.root, config.telemetry)
        self._upkeep = Upkeep(self._outbox)
        self._store = SlotStore(config.root)
        self._logs = LogRecords((config.broker.password, os.environ.get(_METER_PASSWORD)))
        tally = ServedTally()
        self._health = HealthWatch(self._store, also=tally)
        self._serving = Serving(self._store, self._health, StepDown())
        self._recorder = Recorder(self._outbox)
        self._guard = CommandGuard(config.device, config.root, _sure_clock)
        modes = Modes(config.root, config.telemetry.mode)
        self._presence = Presence(
            config.device,
            config.labels,
            self._kind,
            self._outbox,
            self._recorder,
            lambda: self._guard.challenge,
            modes.now,
        )
        self._probe_at = 0.0
        broker = with_identity(config.broker, config.root)
        self._link = Link(
            broker,
            f"ferryman-agent-{config.device}",
            will=self._presence.death,
            session_expiry_s=SESSION_S,
            packet_max_bytes=PACKET_MAX_BYTES,
        )
        self._renewal = _renewal(config, self._link)
        self._updating = self._updater(config.update) if config.update else None
        self._desk = Desk(config.device, self._link, self._do, lambda data: self._guard.open(data, "request"))
        self._guard.on_new_challenge(self._announce)
        self._link.on_ready(self._announce)
        self._publisher = Publisher(
            self._outbox,
            config.device,
            self._link,
            confirm=config.confirm,
            config=config.telemetry,
            mode=modes.now,
            on_mode=self._announce,
            farewell=self._presence.farewell,
        )
        self._seen: SlotState | None = None
        self._trouble = ""
        self._instruments = Instruments(
            config.instruments,
            Wires(config.device, self._kind, config.root, broker, self._link, self._outbox),
            tally,
            self._package,
            lambda sample: self._record([("sample", sample)]),
            modes.now,
        )

    @property
    def waiting(self) -> int:
        """Records that are yet to be sent."""
        return self._presence.counts().records

    def run(self, stop: threading.Event, service: Service | None = None) -> None:
        """Serve until `stop` is set; `service` tells systemd how it goes.

        Raises:
            DeviceError: another agent serves this root.
        """
        service = service or Service({})
        unseen = self._link.broker if self._renewal is None else None
        with only_one(self._config.root), self._logs.listening(), watching(unseen):
            if self._updating:
                self._updating.note_start()
            worker = threading.Thread(
                target=self._desk.work_until,
                args=(stop, self._follow_drift, self._while_idle),
                name="requests",
                daemon=True,
            )
            self._note_changes()
            self._link.start()
            self._publisher.start()
            worker.start()
            beside = self._start_beside(stop)
            service.ready(self._in_a_line())
            try:
                while not stop.wait(POLL_S):
                    beat()
                    self._note_changes()
                    self._note_logs()
                    self._keep_up()
                    self._look_at_storage()
                    if self._presence.is_due(time.monotonic()):
                        self._announce()
                    service.status(self._in_a_line())
            finally:
                service.stopping()
                stop.set()
                if self._renewal:
                    self._renewal.wake()
                if self._updating:
                    self._updating.wake()
                for thread in beside:
                    thread.join(STOP_GRACE_S)
                worker.join(STOP_GRACE_S)
                self._serving.abort()
                self._desk.cancel_all()
                worker.join(STOP_GRACE_S)
                self._recorder.put([("drift", one) for one in self._drift.flush()])
                self._note_logs()
                if self._recorder.waiting:
                    log.error("%d records never reached the disk and are lost", self._recorder.waiting)
                self._publisher.stop()
                self._link.stop()
                if not worker.is_alive():
                    self._serving.close()
                    self._outbox.close()

    def _updater(self, update: UpdateConfig) -> Updating:
        """What brings updates here; the link tells it what is desired, and others what it reports."""
        from ferryman.devices.agent.update.client import UpdateClient
        from ferryman.devices.agent.update.config import check_config
        from ferryman.devices.agent.update.energy import energy_of_both

        check_config(update)
        if not (self._config.root / "trust" / "root.json").is_file():
            log.error(
                "no updates: %s is missing; put the output of `ferryman keys root` there",
                self._config.root / "trust" / "root.json",
            )
        hands = Hands(
            client=lambda cancelled: UpdateClient(self._config.root, update, cancelled=cancelled),
            ready=self._why_not_yet,
            health=self._health_now,
            before_latency_ns=self._health.latency_ns,
            report=self._report,
            energy=partial(energy_of_both, self._store),
        )
        updating = Updating(self._store, self._config.device, self._kind, hands)
        self._link.subscribe(topics.desired(self._config.device), self._on_desired)
        self._link.on_ready(lambda: self._tell_reported(updating.said))
        return updating

    def _why_not_yet(self, desired: Desired) -> str:
        limits = Limits(mains=self._config.mains, idle_s=self._config.idle_s)
        return why_not_yet(limits, desired.window, read_now(self._health.idle_s(), _CLOCK_FLOOR_NS)) or ""

    def _health_now(self) -> Health | None:
        if self._health.wants_drift():
            self._tell_drift(self._drift.flush())
        return self._health.health()

    def _start_beside(self, stop: threading.Event) -> list[threading.Thread]:
        """What goes on beside requests and telemetry, each in a thread of its own until `stop` is set."""
        runs: dict[str, Run] = self._instruments.runs()
        if self._updating:
            runs["updates"] = self._updating.run
        if self._renewal:
            runs["certificate"] = self._renewal.run
        threads = [
            threading.Thread(target=_begun_anew, args=(name, run, stop), name=name, daemon=True)
            for name, run in runs.items()
        ]
        for thread in threads:
            thread.start()
        return threads

    def _in_a_line(self) -> str:
        """What it serves, and whether the broker is connected."""
        slot = self._seen.active if self._seen else None
        what = f"{slot.package_name} {slot.package_sha256:.12} of slot {slot.name}" if slot else "nothing"
        problem = self._link.problem
        storage = f"; storage: {self._presence.storage}" if self._presence.storage else ""
        serves = self._trouble or f"serves {what}"
        return f"{serves}; broker {self._link.broker.address} {problem or 'connected'}{storage}"

    def _package(self) -> str | None:
        return self._seen.active.package_sha256 if self._seen and self._seen.active else None

    def _on_desired(self, delivery: Delivery) -> None:
        if len(delivery.payload) > MESSAGE_MAX_BYTES + OVERHEAD_MAX_BYTES:
            log.warning("%s holds %d bytes, more than any wish, ignored", delivery.topic, len(delivery.payload))
            return
        if not delivery.payload:  # a retained message that was cleared
            if self._updating:
                self._updating.forget()
            return
        try:
            desired = decode(self._guard.open(delivery.payload, "desired"), Desired)
        except IdentityError as error:
            log.warning("%s is not obeyed: %s", delivery.topic, error)
            return
        except ValueError as error:
            log.warning(
                "%s cannot be read, ignored: %s; see that both ferrymans are of one version", delivery.topic, error
            )
            return
        if self._updating:
            self._updating.desire(desired)

    def _report(self, reported: Reported) -> None:
        """Say how an update goes; what ended, and what went wrong, is telemetry too."""
        if reported.rollout and (reported.state in FINAL or reported.error):
            self._record([("update", reported)])
            self._publisher.wake()
        self._tell_reported(reported)

    def _tell_reported(self, reported: Reported) -> None:
        """Publish it alone: a new connection, or a restart, is no news."""
        try:
            topic = topics.reported(self._config.device)
            self._link.publish(Message(topic=topic, payload=encode(reported), retain=True))
        except (LinkError, DeviceError) as error:
            log.debug("not reported: %s", error)

    def _note_changes(self) -> None:
        """Announce a slot that another process activated, and put it on record."""
        try:
            state = self._store.read_state()
        except DeviceError as error:
            if str(error) != self._trouble:
                log.error("%s", error)  # noqa: TRY400  # the message says it all
            self._trouble = str(error)
            return
        self._trouble = ""
        self._health.follow(state)
        if self._serving.adapt(read_now(self._health.idle_s(), _CLOCK_FLOOR_NS)):
            self._announce()
        self._tell_drift(self._drift.due(time.time_ns(), state.active.package_sha256 if state.active else None))
        if state == self._seen:
            self._recorder.put([])
            return
        self._seen = state
        self._record([("slots", state)])
        if self._updating:
            self._updating.look()
        if state.active:
            log.info(
                "slot %s serves %s %.12s", state.active.name, state.active.package_name, state.active.package_sha256
            )
        self._announce()

    def _note_logs(self) -> None:
        """Put on record what was logged; while the disk is full it waits where equal messages are one."""
        with self._logs.quiet():
            if not self._recorder.waiting and (lines := self._logs.take()):
                self._record([("log", line) for line in lines])

    def _keep_up(self) -> None:
        try:
            self._upkeep.look(time.monotonic())
        except DeviceError as error:
            log.debug("not done: %s", error)  # the recorder says what is wrong with the disk

    def _look_at_storage(self) -> None:
        """Tell everybody where the disk takes no telemetry, and when it does again."""
        now = time.monotonic()
        if self._recorder.trouble and now < self._probe_at:
            return
        self._probe_at = now + STORAGE_EVERY_S
        found = (why_not_writable(self._outbox.path.parent) or "failing") if self._recorder.trouble else ""
        if found != self._presence.storage:
            log.warning("storage: %s", found or "telemetry reaches the disk again")
            self._presence.storage = found
            self._announce()

    def _follow_drift(self) -> None:
        """Put the inference that was just answered into the statistics; whatever goes wrong there ends there."""
        served = self._serving.take_served()
        if served is None:
            return
        try:
            self._tell_drift(self._drift.observe(served, time.time_ns()))
        except Exception:
            log.exception("the inference is not in the drift statistics")

    def _while_idle(self) -> None:
        self._health.idle(self._serving)

    def _record(self, records: Sequence[tuple[str, Record]]) -> None:
        """Put records on their way; one that fits no outbox is no reason to stop serving."""
        try:
            self._recorder.put(records)
        except CallerError as error:
            log.error("a record is lost: %s", error)  # noqa: TRY400  # said in full

    def _tell_drift(self, records: Sequence[Drift]) -> None:
        if records:
            self._health.saw_drift(records)
            self._record([("drift", one) for one in records])
            self._publisher.wake()

    def _announce(self) -> None:
        """Publish birth; death takes it back. An agent whose store is damaged is online and serves nothing."""
        try:
            slot = self._store.read_state().active
        except DeviceError:
            slot = None
        self._presence.announce(self._link, slot, self._serving.answers)

    def _do(self, request: Request, left_s: float, cancelled: threading.Event | None) -> Body:
        if isinstance(request.body, InferRequest):
            return self._serving.infer(request.body, left_s)
        if isinstance(request.body, ProfileRequest):
            return self._profile(request.body, left_s, cancelled)
        if isinstance(request.body, FactsRequest):
            from ferryman.devices.agent.own_facts import own_facts

            return FactsReply(facts=own_facts(self._store.root))
        return self._presence.status(self._store.read_state().active, self._serving.answers)

    def _profile(self, request: ProfileRequest, left_s: float, cancelled: threading.Event | None) -> ProfileReply:
        from ferryman.profiler.runner import run_profile

        meter, _, _ = (request.spec.meter or "").partition("?")
        if meter.startswith("python:") and meter.removeprefix("python:") not in os.environ.get(_METERS, "").split(","):
            raise CallerError(
                f"{meter} runs code, and who asks an agent may not choose which; name it in the agent's {_METERS}"
            )
        active = self._serving.current()
        if active.slot.package_sha256 != request.package_sha256:
            raise DeviceError(
                f"package {request.package_sha256[:12]} is not active here, {active.slot.package_name} "
                f"{active.slot.package_sha256[:12]} is; push it first"
            )
        self._serving.release()
        self._store.verify(active.slot)  # its files may have been damaged since it was noticed
        measurements = run_profile(
            active.directory,
            active.manifest,
            active.slot.package_sha256,
            request.spec,
            lambda step: log.info("profile %s", step),
            timeout_s=left_s,
            cancelled=cancelled,
        )
        self._recorder.put([("measurement", as_record(one)) for one in measurements])
        self._publisher.wake()
        return ProfileReply(measurements=measurements)


def _begun_anew(name: str, run: Run, stop: threading.Event) -> None:
    """Run what goes on beside serving; what fails there ends neither, and is begun anew."""
    while not stop.is_set():
        try:
            run(stop)
        except Exception:
            log.exception("%s failed; begun anew in %g s", name, ANEW_S)
            stop.wait(ANEW_S)
        else:
            return


def _renewal(config: AgentConfig, link: Link) -> Renewal | None:
    """What keeps the device's certificate alive, where it has one."""
    if link.broker.tls_cert is None:
        return None
    try:
        from ferryman.devices.agent.renewal import renewal_of
    except ModuleNotFoundError as error:
        log.warning("the certificate will not renew itself: no %s here; pip install 'ferryman[enroll]'", error.name)
        return None
    return renewal_of(config.device, config.root, link)


def _sure_clock() -> int | None:
    """The wall clock; None: nothing keeps it right."""
    now = read_clock()
    return now.time_ns if now.sure else None

"""Drive a rollout: from its file and the broker, until it has ended or is told to stop.

Each turn hears what came, lets the engine decide, commits, and only then tells the devices. A kill anywhere in it
loses nothing: what was committed and not sent is sent by the next who drives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.expiry import watching
from ferryman.devices.fleet.rollout.engine import Engine
from ferryman.devices.fleet.rollout.link import FleetLink, Heard, Nonsense
from ferryman.devices.fleet.rollout.records import Plan, Progress, Row, desired_of
from ferryman.devices.fleet.rollout.store import Request, RolloutStore
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.rollout import Desired, Reported

CONNECT_S = 10.0
FLUSH_S = 30.0
_TICK_S = 0.5
Watch = Callable[[Engine], None]
"""Called after each turn that changed something."""


def drive(
    store: RolloutStore,
    rollout: str | None,
    broker: BrokerConfig,
    *,
    stop: threading.Event | None = None,
    watch: Watch = lambda _: None,
) -> tuple[Plan, Progress]:
    """Drive a rollout until it has ended, or `stop` is set; then it can be driven on at any time.

    Args:
        store: that holds it.
        rollout: its id, or the beginning of it; None: the last one.
        broker: where its devices are.
        stop: ends it early.
        watch: sees it after each change.

    Raises:
        CallerError: there is no such rollout, or another process drives it.
        LinkError: the broker cannot be reached at first, or refuses what is sent.
        StoreError: the file cannot be read or written.
    """
    plan, _ = store.find(rollout)
    with store.driving(plan.id) as alone:
        if not alone:
            raise CallerError(f"rollout {plan.id} is driven by another process already; see `ferryman rollout status`")
        plan, progress = store.find(plan.id)
        engine = Engine(plan, progress, store.rows(plan.id), store.found(plan.package_sha256), store.versions())
        link = FleetLink(broker, plan.id)
        link.start(CONNECT_S)
        try:
            with watching(broker):
                _Driver(store, engine, link, watch).run(stop or threading.Event())
        finally:
            link.stop()
        return plan, engine.progress


class _Driver:
    def __init__(self, store: RolloutStore, engine: Engine, link: FleetLink, watch: Watch) -> None:
        self._store, self._engine, self._link, self._watch = store, engine, link, watch
        self._ticked_s = 0.0
        self._changed = False
        """In the last turn: what it brought about may allow for more."""

    def run(self, stop: threading.Event) -> None:
        link, engine = self._link, self._engine
        self._watch(engine)
        while not stop.is_set():
            heard = link.take()
            self._hear(heard, time.time_ns())
            requests: list[Request] = []
            if link.settled():
                link.resync(self._wanted())
                engine.connected(link.connected_at_ns)
                requests = self._requests()
                if self._changed or heard or requests or time.monotonic() - self._ticked_s >= _TICK_S:
                    engine.tick(time.time_ns())
                    self._ticked_s = time.monotonic()
            self._commit(requests)
            self._insist(heard)
            if engine.ended and link.settled():
                break
        link.flush(FLUSH_S)

    def _hear(self, heard: Sequence[Heard], now_ns: int) -> None:
        for device, body in heard:
            if isinstance(body, Status):
                self._engine.hear_status(body)
            elif isinstance(body, Reported):
                self._engine.hear_report(body, now_ns)
            elif isinstance(body, Nonsense):
                self._engine.hear_nonsense(device, body.why, now_ns)
            else:
                self._engine.hear_desired(device, body, now_ns)

    def _requests(self) -> list[Request]:
        requests = self._store.requests(self._engine.plan.id)
        for one in requests:
            try:
                self._engine.request(one.verb, one.who, one.why, time.time_ns())
            except CallerError as error:
                self._engine.refuse(one.verb, one.who, str(error), time.time_ns())
        return requests

    def _commit(self, requests: Sequence[Request]) -> None:
        changes = self._engine.take()
        self._changed = changes is not None
        if changes is None:
            return
        self._store.commit(self._engine.plan, changes, requests)
        for row in changes.rows:
            if (payload := self._payload(row)) is not None:
                self._link.tell(row.device, payload)
        self._watch(self._engine)

    def _insist(self, heard: Sequence[Heard]) -> None:
        """Where the broker was given something else to keep for a device that is still ours, give it ours."""
        for device, body in heard:
            row = self._engine.rows.get(device)
            if isinstance(body, Desired) and row is not None and (payload := self._payload(row)):
                self._link.tell(device, payload)

    def _wanted(self) -> dict[str, bytes]:
        rows = self._engine.rows.values()
        return {row.device: payload for row in rows if (payload := self._payload(row)) is not None}

    def _payload(self, row: Row) -> bytes | None:
        """What the broker should keep for the device; None: that is not our matter."""
        if row.state == "cleared":
            return b""
        desired = desired_of(row, self._engine.plan)
        return encode(desired) if desired else None

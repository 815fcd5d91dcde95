"""A collector with all that belongs to it, from start to stop."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.expiry import watching
from ferryman.devices.fleet.alerts.alerting import Alerting
from ferryman.devices.fleet.collector.collector import Collector, Commit
from ferryman.devices.fleet.collector.housekeeping import TICK_S, Chore, Housekeeping
from ferryman.devices.fleet.collector.instance import client_id
from ferryman.devices.fleet.collector.leader import ALERTS, STORE, Leader
from ferryman.devices.fleet.collector.metrics import Address, Metrics
from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import open_store

ROLL_UP_S = 60.0
RETAIN_S = 3600.0


class Progress(NamedTuple):
    """What the collector has done since it started."""

    new: int = 0
    duplicates: int = 0
    quarantined: int = 0
    statuses: int = 0

    def after(self, commit: Commit) -> Progress:
        """With one commit more."""
        new, duplicates, conflicts = commit.inserted
        return Progress(
            self.new + new,
            self.duplicates + duplicates,
            self.quarantined + len(commit.bad) + conflicts,
            self.statuses + commit.statuses,
        )


def run_collector(
    broker: BrokerConfig,
    database: str | Path,
    *,
    stop: threading.Event,
    metrics: Address | None = None,
    alerts: Path | None = None,
    policy: Policy | None = None,
    on_connected: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Collect into `database` (made if missing) until `stop` is set.

    Args:
        broker: where from.
        database: a file (SQLite), or postgresql://...
        stop: ends it.
        metrics: where Prometheus may ask.
        alerts: file of rules and of whom to tell; None: the rules that are always there, told on MQTT.
        policy: how long things are kept; None: the default.
        on_connected: called on each connection to the broker, with the store's name.
        on_progress: called after each commit.

    Raises:
        CallerError: the database's URL or the file of alerts cannot be read, or the address cannot be had.
        StoreError: the database cannot be opened, or another collector writes to this SQLite file.
    """
    progress = Progress()
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(database)))
        name = stack.enter_context(client_id(store))
        shown = Metrics(store)

        def on_commit(commit: Commit) -> None:
            nonlocal progress
            progress = progress.after(commit)
            shown.on_commit(commit)
            on_progress(progress)

        collector = Collector(broker, store, name, on_commit, shown.on_failure)
        collector.link.on_ready(lambda: on_connected(store.name))
        shown.watch(collector)
        alerting = Alerting(store, collector.link, alerts)
        stack.callback(alerting.close)
        if metrics is not None:
            stack.enter_context(shown.served(metrics))
        # Two threads, for a rollup may take longer than an alert may wait.
        for housekeeping in (
            Housekeeping(
                Leader(store, ALERTS),
                (Chore("alerts", TICK_S, alerting.tick),),
                on_idle=alerting.idle,
                on_tick=shown.count,
            ),
            Housekeeping(
                Leader(store, STORE),
                (
                    Chore("rollups", ROLL_UP_S, functools.partial(roll_up, store)),
                    Chore("retention", RETAIN_S, functools.partial(retain, store, policy or Policy())),
                ),
            ),
        ):
            housekeeping.start()
            stack.callback(housekeeping.stop)
        stack.enter_context(watching(broker))
        collector.run(stop)
    return progress

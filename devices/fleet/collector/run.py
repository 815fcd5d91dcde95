"""A collector with all that belongs to it, from start to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector.collector import Collector, Commit
from ferryman.devices.fleet.collector.housekeeping import Housekeeping
from ferryman.devices.fleet.collector.instance import client_id
from ferryman.devices.fleet.collector.metrics import Address, Metrics
from ferryman.devices.fleet.store.store import open_store


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
    on_connected: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Collect into `database` (made if missing) until `stop` is set.

    Args:
        broker: where from.
        database: a file (SQLite), or postgresql://...
        stop: ends it.
        metrics: where Prometheus may ask.
        on_connected: called on each connection to the broker, with the store's name.
        on_progress: called after each commit.

    Raises:
        CallerError: the database's URL cannot be read, or the address of the metrics cannot be had.
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

        collector = Collector(broker, store, name, on_commit)
        collector.link.on_ready(lambda: on_connected(store.name))
        shown.watch(collector)
        if metrics is not None:
            stack.enter_context(shown.served(metrics))
        housekeeping = Housekeeping(store, (), on_tick=shown.count)
        housekeeping.start()
        stack.callback(housekeeping.stop)
        collector.run(stop)
    return progress

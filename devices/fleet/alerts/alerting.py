"""Alerts, as the collector runs them: look, put down, tell."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ferryman.devices.fleet.alerts import kept, silences
from ferryman.devices.fleet.alerts.board import NAME, Board
from ferryman.devices.fleet.alerts.book import Book
from ferryman.devices.fleet.alerts.chosen import Chosen
from ferryman.devices.fleet.alerts.config import Config, read_config
from ferryman.devices.fleet.alerts.senders import Sender
from ferryman.devices.fleet.alerts.watch import Changes, Watch
from ferryman.devices.fleet.alerts.words import in_a_line
from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.mqtt import Link
from ferryman.runtime.contracts.errors import CallerError, StoreError

log = logging.getLogger(__name__)

TICK_S = 5.0
KEPT_NS = 365 * 86_400 * 10**9
"""Alerts that are over are kept so long."""
FORGET_EVERY_S = 3600.0
LOGGED_MAX = 100
"""Alerts of one look that begin, and that end, of which each has a line in the log."""


class Counts(NamedTuple):
    """Since the start, but for `open`."""

    open: int = 0
    opened: int = 0
    resolved: int = 0
    told: int = 0
    """Notices that were taken."""
    failed: int = 0
    """Attempts that were not."""
    tick_s: float = 0.0
    """What the last tick took."""


class Alerting:
    """Of the one collector that holds the lock; `tick` is called by one thread, every TICK_S."""

    def __init__(self, store: Store, link: Link | None, path: Path | None = None) -> None:
        """Read the rules; nothing runs before the first tick. Before `link.start()`.

        Raises:
            CallerError: the file cannot be read, or is wrong.
        """
        self._store, self._path = store, path
        self._modified = _modified(path)
        self._config = read_config(path)
        self._watch = Watch(self._config)
        self._book = Book(None if link is None else NAME)
        self._book.configure(self._config)
        self._senders = self._make_senders(self._config)
        self._running = False
        self._counts = Counts()
        self._board = None if link is None else Board(link, self._book)
        self._began_s = time.time()
        self._forgot_s = -FORGET_EVERY_S
        self._silences: dict[int, Chosen | None] = {}
        """Those in force, by id; None: what cannot be read, and was logged."""

    @property
    def counts(self) -> Counts:
        """For metrics."""
        told = sum(sender.told for sender in self._senders)
        return self._counts._replace(told=told, failed=sum(sender.failed for sender in self._senders))

    def tick(self, now_ns: int) -> Changes:
        """Look once, and have told what there is to tell.

        Raises:
            StoreError: the store cannot be read or written; the next tick makes up for it.
        """
        began = time.monotonic()
        self._reread()
        if not self._running:
            self._running = True
            for sender in self._senders:
                sender.start()
        heard_s = self._began_s if self._board is None else self._board.heard_s
        changes = self._watch.check(self._store, now_ns, heard_s)
        self._put_down_told(now_ns)
        if began - self._forgot_s > FORGET_EVERY_S:
            kept.forget(self._store, now_ns - KEPT_NS)
            silences.forget(self._store, now_ns - KEPT_NS)
            self._forgot_s = began
        rows = kept.read(self._store)
        _log(changes, rows)
        self._silence(now_ns)
        self._book.update(rows, self._target, time.monotonic())
        if self._board is not None:
            self._board.post(rows, lambda alert: kept.is_over(self._store, alert))
        self._counts = self._counts._replace(
            open=sum(row.alert.until_ns is None for row in rows),
            opened=self._counts.opened + len(changes.opened),
            resolved=self._counts.resolved + len(changes.resolved),
            tick_s=time.monotonic() - began,
        )
        return changes

    def idle(self) -> None:
        """Another collector looks from now on: forget what was known, and tell nobody."""
        if self._running:
            self._watch = Watch(self._config)
            self._book.forget()

    def close(self) -> None:
        """End the threads; what was not told is told after the next start."""
        for sender in self._senders:
            sender.ask_to_stop()
        if self._running:
            for sender in self._senders:
                sender.join()
            try:
                self._put_down_told(time.time_ns())
            except StoreError as error:
                log.warning("%s; what was told last is told again", error)
        self._running = False

    def _silence(self, now_ns: int) -> None:
        """Have the book know the silences of the store."""
        known, self._silences = self._silences, {}
        found: list[tuple[float, Chosen]] = []
        for one in silences.read(self._store, now_ns=now_ns):
            try:
                chosen = known[one.id] if one.id in known else Chosen(one.devices, one.rules)
            except CallerError as error:
                chosen = None
                log.error("alerts: silence %d cannot be read, and silences nobody: %s", one.id, error)  # noqa: TRY400  # as below
            self._silences[one.id] = chosen
            if chosen is not None:
                found.append((one.ends_ns / 1e9, chosen))
        self._book.silence(found)

    def _put_down_told(self, now_ns: int) -> None:
        told = self._book.take_told()
        kept.mark_told(self._store, told, now_ns)
        self._book.forget_told(told)

    def _make_senders(self, config: Config) -> list[Sender]:
        return [Sender(self._book, at, tell) for at, tell in enumerate(config.tells)]

    def _reread(self) -> None:
        """Take the file anew where it changed; one that is wrong changes nothing."""
        modified = _modified(self._path)
        if modified == self._modified:
            return
        self._modified = modified
        try:
            config = read_config(self._path)
            senders = self._make_senders(config)
        except CallerError as error:
            log.error("%s; the rules before it stay", error)  # noqa: TRY400  # no traceback: said in full
            return
        log.info("alerts: %s was read again", self._path)
        self.close()
        self._config, self._senders = config, senders
        self._watch.configure(config)
        self._book.configure(config)

    def _target(self, device: str) -> Target:
        picture = self._watch.picture
        row = picture.rows.get(device)
        return Target(name=device) if row is None else picture.targets[row]


def _log(changes: Changes, rows: Sequence[kept.Kept]) -> None:
    """A line for each that begins or ends, as a site that goes dark may be many."""
    over = {row.id: row.alert for row in rows}
    ended = [over[which] for which in changes.resolved if which in over]
    for alerts, what in ((changes.opened, "begins"), (ended, "is over")):
        for alert in alerts[:LOGGED_MAX]:
            log.warning("alert %s: %s", what, in_a_line(alert))
        if (more := len(alerts) - LOGGED_MAX) > 0:
            log.warning("alert %s: %d others; `ferryman fleet alerts --past` has all", what, more)


def _modified(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None

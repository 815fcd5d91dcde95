"""Who has yet to be told of what, grouped, so that a site that goes dark is one notice.

It holds what the store says is untold, and is asked anew before each notice: what changed while somebody could not be
reached is told as it is by then.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ferryman.devices.fleet.alerts.chosen import Chosen
from ferryman.devices.fleet.alerts.config import Config, Tell
from ferryman.devices.fleet.alerts.kept import Kept
from ferryman.devices.fleet.alerts.words import NAME_MAX_CHARS, TEXT_MAX_CHARS, cut, utc
from ferryman.devices.fleet.rollout.query import Target
from ferryman.runtime.contracts.alert import Alert, Notice

SHOWN_MAX = 20
"""Alerts that a notice spells out."""
GIVE_UP_S = 86_400.0
"""Who could not be told for so long is not told of it; neither a silence nor the wait for a group counts."""
_MARKS = ("warning", "critical")

Key = tuple[str, bool, str]
"""Rule, whether it is resolved, group."""


class Due(NamedTuple):
    """One notice to send, and what it tells of."""

    key: Key
    notice: Notice
    entries: tuple[tuple[int, bool], ...]
    """Id, and whether it is over."""


@dataclass
class _Entry:
    alert: Alert
    target: Target
    came_s: float
    """Monotonic."""
    silent_s: float = 0.0
    """Monotonic: when a silence last held it back."""
    left: set[str] = field(default_factory=set)
    """Whom to tell."""

    @property
    def over(self) -> bool:
        return self.alert.until_ns is not None


class Book:
    """Of several threads: the one that looks, and one for each who is told."""

    def __init__(self, board: str | None) -> None:
        """`board` is told of everything, at once and one by one."""
        self._lock = threading.Lock()
        self._board = board
        self._entries: dict[int, _Entry] = {}
        self._told: list[tuple[int, bool]] = []
        self._sent: dict[tuple[str, Key], float] = {}
        self._stored: tuple[tuple[float, Chosen], ...] = ()
        self._config = Config()
        self.configure(Config())

    def configure(self, config: Config) -> None:
        """Take other people to tell and silences."""
        with self._lock:
            if config.tells != self._config.tells:
                self._entries.clear()
            self._config = config
            tells = {sink_name(at): tell for at, tell in enumerate(config.tells)}
            self._tells = {name: (tell, Chosen(tell.devices, tell.rules)) for name, tell in tells.items()}
            self._silences = [(one.until.timestamp(), Chosen(one.devices, one.rules)) for one in config.silences]

    def silence(self, silences: Sequence[tuple[float, Chosen]]) -> None:
        """Take those of the store, each with its end (Unix epoch), in place of what they were; the file's stay."""
        with self._lock:
            self._stored = tuple(silences)

    def forget(self) -> None:
        """Another collector tells from now on."""
        with self._lock:
            self._entries.clear()
            self._told.clear()

    def update(self, rows: Sequence[Kept], target: Callable[[str], Target], now_s: float) -> None:
        """Take in what the store says; `now_s` is monotonic."""
        with self._lock:
            untold = {row.id: row.alert for row in rows if not row.told}
            gone = set(self._told)
            for which in self._entries.keys() - untold.keys():
                del self._entries[which]
            for which, alert in untold.items():
                known = self._entries.get(which)
                over = alert.until_ns is not None
                if (which, over) in gone or (known is not None and known.over == over):
                    continue
                entry = _Entry(alert, target(alert.device), now_s)
                entry.left = {name for name, (tell, chosen) in self._tells.items() if _wants(tell, chosen, entry)}
                if self._board is not None:
                    entry.left.add(self._board)
                self._entries[which] = entry
                self._strike(which, entry)

    def due(self, sink: str, now_s: float, wall_s: float) -> list[Due]:
        """What one of those who are told is to be told now."""
        group = self._config.group
        with self._lock:
            groups: dict[Key, list[tuple[int, _Entry]]] = defaultdict(list)
            for which, entry in list(self._entries.items()):
                if sink not in entry.left:
                    continue
                silenced = self._is_silenced(entry, wall_s)
                if silenced and not entry.over:
                    entry.silent_s = now_s
                    continue
                if silenced or now_s - max(entry.came_s + group.wait_s, entry.silent_s) > GIVE_UP_S:
                    entry.left.discard(sink)
                    self._strike(which, entry)
                    continue
                value = cut(entry.target.label(group.by) or "", NAME_MAX_CHARS)
                groups[entry.alert.rule, entry.over, value].append((which, entry))
            return [
                _due(key, some, group.by)
                for key, some in groups.items()
                if now_s - min(entry.came_s for _, entry in some) >= group.wait_s
                and now_s - self._sent.get((sink, key), -group.every_s) >= group.every_s
            ]

    def on_board(self) -> list[tuple[int, Alert]]:
        """What the board is not told of."""
        with self._lock:
            return [(which, entry.alert) for which, entry in self._entries.items() if self._board in entry.left]

    def done(self, sink: str, due: Due, now_s: float) -> None:
        """They were told."""
        with self._lock:
            self._sent[sink, due.key] = now_s
            for which, over in due.entries:
                self._did(sink, which, over=over)

    def posted(self, which: int, *, over: bool) -> None:
        """The board was told."""
        with self._lock:
            self._did(self._board or "", which, over=over)

    def take_told(self) -> list[tuple[int, bool]]:
        """Of what everybody was told; to be put down in the store, then `forget_told`."""
        with self._lock:
            return list(self._told)

    def forget_told(self, told: Sequence[tuple[int, bool]]) -> None:
        """The store knows of these."""
        with self._lock:
            self._told = self._told[len(told) :]

    def _did(self, sink: str, which: int, *, over: bool) -> None:
        entry = self._entries.get(which)
        if entry is not None and entry.over == over:
            entry.left.discard(sink)
            self._strike(which, entry)

    def _strike(self, which: int, entry: _Entry) -> None:
        if not entry.left:
            self._told.append((which, entry.over))
            del self._entries[which]

    def _is_silenced(self, entry: _Entry, wall_s: float) -> bool:
        rule, target = entry.alert.rule, entry.target
        return any(wall_s < until and one.has(rule, target) for until, one in (*self._silences, *self._stored))


def sink_name(at: int) -> str:
    """What the `[[tell]]` of that index is called: its URL may hold a password."""
    return f"tell[{at}]"


def _wants(tell: Tell, chosen: Chosen, entry: _Entry) -> bool:
    enough = _MARKS.index(entry.alert.severity) >= _MARKS.index(tell.severity)
    return enough and chosen.has(entry.alert.rule, entry.target)


def _due(key: Key, some: Sequence[tuple[int, _Entry]], label: str) -> Due:
    rule, over, value = key
    alerts = tuple(entry.alert for _, entry in some)
    return Due(
        key,
        notice(alerts, rule, f"{label}={value}" if value else "", over=over),
        tuple((which, over) for which, _ in some),
    )


def notice(alerts: Sequence[Alert], rule: str, group: str, *, over: bool) -> Notice:
    """Put alerts of one rule into words: a title of one line, and a line for each of the first SHOWN_MAX."""
    severity = "critical" if any(one.severity == "critical" for one in alerts) else "warning"
    who = alerts[0].device if len(alerts) == 1 else f"{len(alerts)} devices"
    where = f" at {group}" if group else ""
    title = f"{'resolved' if over else severity}: {rule}: {who}{where}"
    lines = [_line(one) for one in alerts[:SHOWN_MAX]]
    if len(alerts) > SHOWN_MAX:
        lines.append(f"and {len(alerts) - SHOWN_MAX} more")
    return Notice(
        title=title,
        text="\n".join(lines),
        rule=rule,
        severity="critical" if severity == "critical" else "warning",
        resolved=over,
        group=group,
        alerts=tuple(alerts),
    )


def _line(alert: Alert) -> str:
    text = cut(alert.text, TEXT_MAX_CHARS)
    if alert.until_ns is None:
        return f"{alert.device}: {text} (since {utc(alert.since_ns)})"
    return f"{alert.device}: is over: {text} ({utc(alert.since_ns)} to {utc(alert.until_ns)})"

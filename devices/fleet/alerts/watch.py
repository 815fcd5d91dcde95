"""Looks at the store every few seconds, and raises and ends alerts there."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from ferryman.devices.fleet.alerts import kept, windows
from ferryman.devices.fleet.alerts.config import Config
from ferryman.devices.fleet.alerts.looks import Bools, Open, View, look
from ferryman.devices.fleet.alerts.past import Pasts
from ferryman.devices.fleet.alerts.patience import Patience
from ferryman.devices.fleet.alerts.picture import Picture
from ferryman.devices.fleet.alerts.rules import Costlier, Rule, Slower, name_of
from ferryman.devices.fleet.rollout.query import parse_query
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.alert import Alert


class Changes(NamedTuple):
    """What one look changed."""

    opened: tuple[Alert, ...]
    resolved: tuple[int, ...]
    """By id."""


class Watch:
    """What is known and how long it has held: of one thread."""

    def __init__(self, config: Config) -> None:
        self.picture = Picture()
        self._pasts = Pasts()
        self._patience = Patience()
        self._applies: dict[str, tuple[int, Bools]] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take other rules from now on; alerts of rules that are gone end."""
        self._rules = config.rules
        self._applies.clear()
        self.picture.drift.reference = config.reference

    def check(self, store: Store, now_ns: int, heard_s: float | None) -> Changes:
        """Take in what the store got since, and put down which alerts begin and end.

        Args:
            store: of the collector.
            now_ns: Unix epoch.
            heard_s: since when the collector hears the broker, Unix epoch; None: it does not.

        Raises:
            StoreError: the store cannot be read or written; the next check makes up for it.
            DeviceError: drift records came, and the sketch library is not installed.
        """
        picture, now_s = self.picture, now_ns / 1e9
        picture.refresh(store, now_ns)
        self._read_pasts(store, now_s)
        opened: dict[str, dict[int, Open]] = defaultdict(dict)
        stray = []
        names = {name_of(rule) for rule in self._rules}
        for one in kept.read(store):
            row = picture.rows.get(one.alert.device)
            if one.alert.until_ns is not None:
                continue
            if row is None or one.alert.rule not in names:
                stray.append(one.id)
            else:
                opened[one.alert.rule][row] = Open(one.id, one.alert.subject, one.alert.bound)
        begun: list[Alert] = []
        over: list[int] = stray
        for rule in self._rules:
            mine = opened[name_of(rule)]
            view = View(picture, self._pasts, now_s, heard_s, mine)
            seen = look(rule, view)
            raised, ended = self._patience.step(rule, seen, self._where(rule), mine, list(mine), now_s)
            over += [mine[row].id for row in ended]
            for row, since_s in raised:
                found = seen.found(row)
                begun.append(
                    Alert(
                        device=picture.names[row],
                        rule=name_of(rule),
                        severity=rule.severity,
                        text=found.text,
                        subject=found.subject,
                        value=found.value,
                        bound=found.bound,
                        since_ns=int(since_s * 1e9),
                    )
                )
        kept.change(store, begun, over, now_ns)
        return Changes(tuple(begun), tuple(over))

    def _where(self, rule: Rule) -> Bools:
        """To which devices a rule applies."""
        picture, name = self.picture, name_of(rule)
        known = self._applies.get(name)
        if known is None or known[0] != picture.version:
            query = parse_query(rule.devices)
            known = (picture.version, np.array([query.matches(one) for one in picture.targets], bool))
            self._applies[name] = known
        return known[1]

    def _read_pasts(self, store: Store, now_s: float) -> None:
        least = [rule.periods_min for rule in self._rules if isinstance(rule, Slower | Costlier)]
        if not least:
            return
        picture = self.picture
        answered = (picture.windows.metric(windows.ANSWERED, now_s) > 0).sum(axis=1)
        rows = np.flatnonzero(answered >= min(least)).tolist()
        self._pasts.refresh(store, {row: (picture.names[row], picture.packages[row]) for row in rows}, now_s)

"""Looks at the store every few seconds, and raises and ends alerts there."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ferryman.devices.fleet.alerts import kept, windows
from ferryman.devices.fleet.alerts.config import Config
from ferryman.devices.fleet.alerts.looks import Bools, Found, Open, View, look
from ferryman.devices.fleet.alerts.past import Pasts
from ferryman.devices.fleet.alerts.patience import Patience
from ferryman.devices.fleet.alerts.picture import Picture
from ferryman.devices.fleet.alerts.rules import Costlier, Rule, Slower, name_of
from ferryman.devices.fleet.alerts.words import NAME_MAX_CHARS, TEXT_MAX_CHARS, cut
from ferryman.devices.fleet.rollout.query import parse_query
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.alert import Alert
from ferryman.runtime.contracts.errors import StoreError

log = logging.getLogger(__name__)

_SAID_MAX = 1000
_SINCE_MAX_S = (1 << 63) / 1e9


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
        self._said: set[str] = set()
        """What cannot be looked at, and was logged."""
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
        """
        picture, now_s = self.picture, now_ns / 1e9
        picture.refresh(store, now_ns)
        try:
            self._read_pasts(store, now_s)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # latency and energy are held against what is known already
            self._say_once("the past", error)
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
            try:
                raised, ended = self._step(rule, View(picture, self._pasts, now_s, heard_s, mine))
            except Exception as error:  # noqa: BLE001  # one rule's, which is to keep nobody from the others
                self._say_once(name_of(rule), error)
                continue
            self._said.discard(name_of(rule))
            begun += raised
            over += [mine[row].id for row in ended]
        kept.change(store, begun, over, now_ns)
        return Changes(tuple(begun), tuple(over))

    def _step(self, rule: Rule, view: View) -> tuple[list[Alert], list[int]]:
        """What one rule raises, and the rows for which it is over."""
        seen = look(rule, view)
        seen = seen._replace(found=partial(self._find, rule, seen.found))
        opened = view.opened
        raised, ended = self._patience.step(rule, seen, self._where(rule), opened, list(opened), view.now_s)
        begun = []
        for row, since_s in raised:
            found = seen.found(row)
            begun.append(
                Alert(
                    device=self.picture.names[row],
                    rule=name_of(rule),
                    severity=rule.severity,
                    text=cut(found.text, TEXT_MAX_CHARS),
                    subject=cut(found.subject, NAME_MAX_CHARS),
                    value=found.value,
                    bound=found.bound,
                    since_ns=int(since_s * 1e9),
                )
            )
        return begun, ended

    def _find(self, rule: Rule, find: Callable[[int], Found], row: int) -> Found:
        """Why a rule holds, which must not fail for one device's sake."""
        try:
            found = find(row)
            if found.since_s is None or 0 <= found.since_s < _SINCE_MAX_S:
                return found
            return found._replace(since_s=None)
        except Exception as error:  # noqa: BLE001
            self._say_once(f"{name_of(rule)}, {self.picture.names[row]}", error)
            return Found(f"the rule {name_of(rule)} holds; why cannot be told, see the collector's log")

    def _say_once(self, what: str, error: Exception) -> None:
        if what not in self._said and len(self._said) < _SAID_MAX:
            self._said.add(what)
            log.error("alerts: %s cannot be looked at, which is said once; the others are", what, exc_info=error)

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

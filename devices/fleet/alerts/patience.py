"""When what a rule sees becomes an alert, and when it is over: not before it has lasted."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from ferryman.devices.fleet.alerts.looks import Bools, Look
from ferryman.devices.fleet.alerts.rules import Rule, name_of

FORGET_S = 86_400.0
"""An alert of which nothing more can be told for so long is over."""


class Patience:
    """How long each rule has held for each device (by row), or has not; kept in memory only."""

    def __init__(self) -> None:
        self._holding: dict[str, dict[int, float]] = {}
        self._clearing: dict[str, dict[int, float]] = {}
        self._blind: dict[str, dict[int, float]] = {}

    def step(
        self, rule: Rule, look: Look, applies: Bools, opened: Container[int], rows: list[int], now_s: float
    ) -> tuple[list[tuple[int, float]], list[int]]:
        """Which rows to raise, and since when they hold; and which of `rows`, those with an open alert, are over."""
        name = name_of(rule)
        holds = np.flatnonzero(look.holds & applies).tolist()
        before = self._holding.get(name, {})
        holding: dict[int, float] = {}
        raised = []
        for row in holds:
            since = before.get(row)
            if since is None:
                told = None if row in opened else look.found(row).since_s
                since = now_s if told is None else min(told, now_s)
            holding[row] = since
            if row not in opened and now_s - since >= rule.for_s:
                raised.append((row, since))
        self._holding[name] = holding
        return raised, self._over(rule, look, applies, rows, holding, now_s)

    def _over(
        self, rule: Rule, look: Look, applies: Bools, rows: list[int], holding: Container[int], now_s: float
    ) -> list[int]:
        name = name_of(rule)
        clearing, blind = self._clearing.get(name, {}), self._blind.get(name, {})
        self._clearing[name], self._blind[name] = {}, {}
        over = []
        for row in rows:
            if row in holding:
                continue
            if not applies[row]:
                over.append(row)
                continue
            kept, so_long = (self._clearing[name], rule.clear_s) if look.clear[row] else (self._blind[name], FORGET_S)
            kept[row] = (clearing if look.clear[row] else blind).get(row, now_s)
            if now_s - kept[row] >= so_long:
                over.append(row)
        return over

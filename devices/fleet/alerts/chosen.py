"""Which alerts somebody wants, or a silence means: of some devices, and of some rules or all."""

from __future__ import annotations

from collections.abc import Iterable

from ferryman.devices.fleet.rollout.query import Target, parse_query


class Chosen:
    """What was asked for, read once."""

    def __init__(self, devices: str, rules: Iterable[str]) -> None:
        """`devices` is a query, `rules` names; none: all.

        Raises:
            CallerError: it is no query.
        """
        self._query = parse_query(devices)
        self._rules = frozenset(rules)

    def has(self, rule: str, target: Target) -> bool:
        """Whether an alert of this rule and device is meant."""
        return (not self._rules or rule in self._rules) and self._query.matches(target)

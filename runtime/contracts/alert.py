"""What the collector raises when a device needs somebody: retained on MQTT as JSON, and the body of a webhook."""

from __future__ import annotations

from typing import Literal

from ferryman.runtime.contracts.record import Record

Severity = Literal["warning", "critical"]


class Alert(Record, kw_only=True):
    """One rule that holds, or held, for one device."""

    device: str
    rule: str
    """Its name in the rules file."""
    severity: Severity
    text: str
    """For people."""
    subject: str = ""
    """What of the device: a package, a tensor; empty: the whole."""
    value: float | None = None
    """What was found when it was raised, in the unit of the rule."""
    bound: float | None = None
    """What it went past."""
    since_ns: int
    """Since when it holds, collector's clock."""
    until_ns: int | None = None
    """None: it still does."""


class Notice(Record):
    """Body of a webhook: alerts that one rule raised, or resolved, in one group."""

    title: str
    text: str
    rule: str
    severity: Severity
    resolved: bool
    group: str
    """Such as site=lab; empty: they have no such label."""
    alerts: tuple[Alert, ...]

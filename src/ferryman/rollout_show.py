"""A rollout as it goes: a live table on a terminal with rich, else a line for whatever changed."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from ferryman.devices.fleet.rollout.overview import Overview, device_line, headline, overview, ring_lines, table
from ferryman.devices.fleet.rollout.records import ENDED
from ferryman.runtime.say import echo, lines

if TYPE_CHECKING:
    from ferryman.devices.fleet.rollout.engine import Engine

LINES_MAX = 50
"""Fleets up to this size get a line for each device that changed; larger ones get the rings' counts."""
_EVERY_S = 1.0
_LIVE_DEVICES = 20


class Show:
    """Watches a rollout; use with `with`."""

    def __init__(self) -> None:
        self._live: Any = None
        self._said: dict[str, str] = {}
        self._last_s = 0.0
        self._view: Overview | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            try:
                from rich.console import Console
                from rich.live import Live
            except ModuleNotFoundError:  # an extra; lines do
                return self
            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._show(self._view)
        if self._live is not None:
            self._live.stop()

    def __call__(self, engine: Engine) -> None:
        """Called after each change."""
        self._view = overview(engine.plan, engine.progress, engine.rows.values(), time.time_ns(), engine.heard_since_ns)
        few = len(self._view.devices) <= LINES_MAX
        if few or time.monotonic() - self._last_s >= _EVERY_S:
            self._last_s = time.monotonic()
            self._show(self._view)

    def _show(self, view: Overview) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(lines(table(view, _LIVE_DEVICES))))
            return
        if view.progress.phase not in ENDED:  # then the whole table follows
            self._say("", headline(view))
        if view.waits:
            self._say("waits", f"  {view.waits}")
        if len(view.devices) > LINES_MAX:
            for number, line in enumerate(ring_lines(view)):
                self._say(f"ring {number}", line)
            return
        for one in view.devices:
            if one.standing != "pending":
                self._say(one.device, f"  {device_line(one)}")

    def _say(self, what: str, line: str) -> None:
        if self._said.get(what) != line:
            self._said[what] = line
            echo(line, err=True)

"""Agent half and collector as processes of their own, to be killed: `python -m tests.support.telemetry_processes`."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

from ferryman.devices.agent.modes import Modes
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.publisher import Publisher
from ferryman.devices.agent.spending import TelemetryConfig
from ferryman.devices.agent.window import Limits
from ferryman.devices.broker import parse_broker
from ferryman.devices.fleet.collector.run import run_collector
from ferryman.devices.mqtt import Link
from ferryman.runtime.contracts.record import Record

DEVICE = "pi"
AHEAD_MAX = 500
"""Records that wait at most, so that the stream is under way as long as kills are to come."""
LIMITS = Limits(again_first_s=1.0, again_cap_s=2.0, spread_s=0.0)


class Note(Record):
    number: int


def produce(outbox: Outbox, publisher: Publisher, journal: Path, total: int) -> None:
    """Append Note(n) for n up to `total`, each once, through any number of kills.

    The journal says how far an earlier process came. A kill may fall between the commit and the journal's line, so the
    outbox is asked too: its sequences count appends.
    """
    number = int(journal.read_text() or 0) if journal.exists() else 0
    number = max(number, outbox.newest())
    while number < total:
        while outbox.counts().records > AHEAD_MAX:
            time.sleep(0.005)
        count = min(10, total - number)
        outbox.append_all([("note", Note(number=n)) for n in range(number, number + count)])
        number += count
        journal.write_text(str(number))
        publisher.wake()


def main() -> None:
    role, url, folder, total = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if role == "collector":
        run_collector(parse_broker(url), folder / "store.db", stop=stop)
        return
    outbox = Outbox(folder / "outbox.db")
    link = Link(parse_broker(url), f"agent-{DEVICE}")
    publisher = Publisher(
        outbox,
        DEVICE,
        link,
        limits=LIMITS,
        config=TelemetryConfig(day_max_bytes=10**9),
        mode=Modes(folder).now,
    )
    link.start()
    publisher.start()
    produce(outbox, publisher, folder / "journal", total)
    stop.wait()
    publisher.stop()
    link.stop()
    outbox.close()


if __name__ == "__main__":
    main()

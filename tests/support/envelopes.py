"""Writes tests/golden/envelopes/VERSION: what an agent of this version sends, every kind of record.

`python -m tests.support.envelopes VERSION` is run once for a release, when the envelope or a body has changed; what
earlier versions wrote stays as it is, for every later collector must take it.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import msgspec
import numpy as np

from ferryman.devices.agent.outbox import Dropped, SetAside
from ferryman.profiler.drift import sketch_of
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.envelope import Envelope, EnvelopeV1, Item
from ferryman.runtime.contracts.errors import WireError
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.rollout import Health, Reported
from ferryman.runtime.contracts.slot import HealthRules, Measured, Slot, SlotState, Trial
from ferryman.runtime.contracts.telemetry import ClockFix, LogLine, Sample
from tests.support.measurements import full_measurement

GOLDEN = Path(__file__).parents[1] / "golden" / "envelopes"
DEVICE = "pi-7"
BOOT = "59847469ac76d26d.5ed1cf13-3af4-4bfa-98a0-f7498931f709"
BORN_NS = 1_795_492_336_000_000_000
SHA256 = "5f" * 32


class Note(Record):
    """A kind that ferryman does not know."""

    text: str


def bodies() -> dict[str, Record]:
    """One of every kind, every field of it filled."""
    measured = Measured(variant="fp32", interpreter="tflite", latency_ns=4_310_000, memory_bytes=1 << 20, sqnr_db=81.5)
    slot = Slot(
        name="a",
        package_sha256=SHA256,
        package_name="digits",
        manifest_sha256=SHA256,
        installed_at_ns=BORN_NS,
        pick="fastest",
        variant="fp32",
        interpreter="tflite",
        release="digits/1.2.0",
        measured=(measured,),
    )
    trial = Trial(desired_version=3, rollout="r1", rules=HealthRules(), began_at_ns=BORN_NS, starts=1)
    health = Health(seconds=61.5, starts=1, requests=400, errors=2, latency_ns=4_310_000, before_latency_ns=4_120_000)
    return {
        "measurement": full_measurement(),
        "drift": Drift(
            package_name="digits",
            package_sha256=SHA256,
            variant="fp32",
            interpreter="tflite",
            from_ns=BORN_NS - 60_000_000_000,
            to_ns=BORN_NS,
            inferences=480,
            library="datasketches 5.2.0",
            tensors=(sketch_of([np.linspace(0, 1, 1000, dtype=np.float32)], "x"),),
        ),
        "slots": SlotState(active=slot, trial=trial),
        "update": Reported(
            device=DEVICE,
            at_ns=BORN_NS,
            desired_version=3,
            rollout="r1",
            state="confirmed",
            release="digits/1.2.0",
            package_sha256=SHA256,
            model="Raspberry Pi 5 Model B Rev 1.0",
            error=WireError(party="link", message="connection lost"),
            wire_bytes=123_456,
            wire_total_bytes=130_000,
            measured=(measured,),
            health=health,
        ),
        "dropped": Dropped(records=12, first=40, last=51, total=90),
        "outbox-set-aside": SetAside(
            moved_to="/var/lib/ferryman/outbox.db.1795492336", reason="file is not a database"
        ),
        "note": Note(text="Zürich 🙂"),
    }


def newer_bodies() -> dict[str, Record]:
    """Those that schema 2 came with, or gave new fields."""
    kinds, priorities = {"sample": 11, "log": 1}, {"bulk": 12}
    values = {"inferences": 120.0, "errors": 0.0, "latency_ms": 4.31, "temperature_c": 51.4, "of_my_own_count": 3.0}
    return {
        "dropped": Dropped(records=12, first=40, last=51, total=90, kinds=kinds, priorities=priorities, aged=2),
        "sample": Sample(
            period_s=10.0,
            values=values,
            unavailable={"power_w": "no meter"},
            latencies_ms=(4.1, 4.31, 5.02),
            package_sha256=SHA256,
        ),
        "log": LogLine(level="WARNING", logger="ferryman.devices.agent", message="the slot is damaged", times=3),
        "clock": ClockFix(kernel_boot=BOOT.partition(".")[2], offset_ns=BORN_NS - 7_200_000_000_000),
    }


def schema_1() -> dict[str, bytes]:
    """File name -> message, as ferryman 0.1.0 sends them: one record each."""
    return {
        f"{kind}.json": encode(
            EnvelopeV1(
                device=DEVICE,
                boot=BOOT,
                sequence=sequence,
                time_ns=BORN_NS + sequence,
                kind=kind,
                body=msgspec.Raw(encode(body)),
            )
        )
        for sequence, (kind, body) in enumerate(bodies().items(), 1)
    }


def schema_2() -> dict[str, bytes]:
    """The same with those that are new, one record each, and all in one compressed batch."""
    items = [
        Item(
            sequence=sequence,
            kind=kind,
            time_ns=BORN_NS + sequence,
            uptime_ns=7_200_000_000_000 + sequence,
            sure=sequence % 2 == 0,
            body=msgspec.Raw(encode(body)),
        )
        for sequence, (kind, body) in enumerate((bodies() | newer_bodies()).items(), 1)
    ]
    written = {f"{item.kind}.json": encode(Envelope(device=DEVICE, boot=BOOT, items=(item,))) for item in items}
    late = [msgspec.structs.replace(item, sequence=item.sequence + 100) for item in items]
    written["batch.json.z"] = zlib.compress(
        encode(Envelope(device=DEVICE, boot=BOOT, historical=True, items=tuple(late)))
    )
    return written


def main() -> None:
    version = sys.argv[1]
    messages = schema_1() if version == "0.1.0" else schema_2()
    folder = GOLDEN / version
    folder.mkdir(parents=True)
    for name, message in messages.items():
        (folder / name).write_bytes(message)


if __name__ == "__main__":
    main()

"""Questions find what they ask for by an index, and do not read the tables whole."""

from __future__ import annotations

import pytest
from sqlalchemy.dialects import sqlite

from ferryman.devices.fleet.query.devices import last_clocks
from ferryman.devices.fleet.query.parts import rollups
from ferryman.devices.fleet.query.reading import others_of, samples_of
from ferryman.devices.fleet.query.status import samples_since
from ferryman.devices.fleet.query.window import Window
from ferryman.devices.fleet.store.store import open_store

WITHIN = Window(1, 10**18)
BY_SOURCE = "samples_by_time (source=? AND time_ns>? AND time_ns<?)"
QUESTIONS = {
    "samples of some sources": (samples_of(WITHIN, [1, 2, 3]), {BY_SOURCE}),
    "a kind of all devices": (
        others_of("log", WITHIN, None, newest_first=True), {"others_by_time (kind=? AND time_ns>? AND time_ns<?)"}
    ),
    "a kind of few devices": (
        others_of("log", WITHIN, [1, 2], newest_first=True), {"sqlite_autoindex_records_1 (source=?)"}
    ),
    "samples of the last minutes": (samples_since(1, 10**18), {BY_SOURCE}),
    "a metric of all devices": (
        rollups(("latency_ms",), (1, 2), 3600, None, sketches=True),
        {"rollups_by_time (span_s=? AND start_s>? AND start_s<?)"},
    ),
    "a metric of some devices": (
        rollups(("latency_ms",), (1, 2), 3600, ["a", "b"], sketches=True),
        {"sqlite_autoindex_rollups_1 (device=? AND span_s=? AND start_s>? AND start_s<?)"},
    ),
    "clocks of a page": (last_clocks(["a", "b"]), {"sqlite_autoindex_records_1 (source=?)"}),
}  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_index_that_a_question_uses(question, tmp_path):
    store = open_store(tmp_path / "store.sqlite")
    asked, indexes = QUESTIONS[question]
    compiled = asked.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    plan = [row[3] for row in store.write(lambda c: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all())]
    store.close()
    assert not [step for step in plan if step.startswith(("SCAN records", "SCAN rollups"))], plan
    used = {step.partition("INDEX ")[2] for step in plan if " records " in f"{step} " or " rollups " in f"{step} "}
    assert used == indexes, plan

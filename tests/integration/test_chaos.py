"""The short form of `make chaos`; and ferryman broken on purpose, which it must notice (tests/chaos/mutations.py)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import postgres
from tests.chaos.run import run
from tests.chaos.scene import Plan
from tests.support.mosquitto import BINARY

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below `tmp_path`: the database server's user can reach it."""
    if BINARY is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    made = Path(tempfile.mkdtemp(prefix="ferryman-chaos-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(("seed", "store"), [(1, "sqlite"), (2, "postgresql")])
def test_nothing_is_lost_doubled_or_out_of_order(folder, seed, store):
    if store == "postgresql" and (reason := postgres.why_not()):
        pytest.skip(reason)
    summary = run(Plan(seed, 20_000, store), folder).summary()
    assert summary["wrong"] == [], summary
    assert sum(summary["faults"].values()) > 20, summary


@pytest.mark.parametrize(
    ("mutation", "said"),
    [
        ("receipt-before-commit", "acknowledged records are lost"),
        ("forget-on-broker-ack", "acknowledged records are lost"),
        ("no-unique-key", "records are stored twice"),
    ],
)
def test_a_defect_is_noticed(folder, mutation, said):
    summary = run(Plan(2, 8_000, "sqlite", mutation), folder).summary()
    assert any(said in one for one in summary["wrong"]), summary

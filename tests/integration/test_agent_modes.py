"""`ferryman outbox` beside a running `ferryman agent`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, StatusWatch
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import Receiver, until

pytestmark = pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")


def outbox(root: Path, *words: str) -> dict:
    command = [DEVICE_PYTHON.with_name("ferryman"), "outbox", *words, "--root", str(root), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


@pytest.mark.slow
def test_an_agent_is_switched_off_the_air_and_on_again(tmp_path):
    root = tmp_path / "root"
    options = ["--telemetry-day-max", "1MB", "--telemetry-rate", "100kB", "--keep", "3"]
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver, StatusWatch(broker.config) as watch:
        with AgentProcess(broker.config, root, options=options):
            until(lambda: watch.seen and watch.seen[-1].online, 60)
            until(lambda: outbox(root, "show")["records"] == 0, 60)
            shown = outbox(root, "show")
            assert (shown["mode"], shown["day_max_bytes"]) == ("full", 1_000_000)
            assert 0 < shown["day_spent_bytes"] < 1_000_000
            assert shown["receipt_ns"] is not None
            assert receiver.sequences
            outbox(root, "mode", "metered")
            until(lambda: watch.seen[-1].mode == "metered", 60)
            outbox(root, "mode", "offline")
            until(lambda: not watch.seen[-1].online, 60)
            assert watch.seen[-1].mode == "offline"
            assert outbox(root, "show")["mode"] == "offline"
            births = watch.seen[-1].birth
            outbox(root, "mode", "full")
            until(lambda: watch.seen[-1].online, 60)
            assert watch.seen[-1].birth == births + 1
        outbox(root, "mode", "offline")
        heard = len(watch.seen)
        with AgentProcess(broker.config, root) as again:
            until(lambda: "mode offline" in again.log.read_text(), 60)
            assert not [status for status in watch.seen[heard:] if status.online]

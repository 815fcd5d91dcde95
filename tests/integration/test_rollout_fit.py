"""Which variant a device gets is measured on its class, with real agents: the second fetches one variant alone."""

from __future__ import annotations

import contextlib
import os

from ferryman import roll_out
from ferryman.runtime.slots import SlotStore
from tests.support.agent import AgentProcess, StatusWatch
from tests.support.broker import running_broker
from tests.support.packages import write_varied_package
from tests.support.repository import make_repository


def test_the_second_of_a_kind_fetches_what_fitted_the_first(tmp_path):
    from ferryman.devices.broker import parse_broker

    repository = make_repository(tmp_path)
    package = write_varied_package(tmp_path / "v.ferry", added=4.0, paddings={"large": 300_000})
    release = repository.publish(package, "1")
    with contextlib.ExitStack() as stack:
        broker = parse_broker(stack.enter_context(running_broker(tmp_path)).url)
        url = stack.enter_context(repository.serve())
        for name in ("pi-1", "pi-2"):
            root = tmp_path / name
            (root / "trust").mkdir(parents=True)
            (root / "trust" / "root.json").write_bytes(repository.root)
            options = ("--repository", url, "--label", "site=lab")
            stack.enter_context(AgentProcess(broker, root, name, options))
            watch = stack.enter_context(StatusWatch(broker, name))
            watch.wait_for(lambda status: status.online and status.labels == {"site": "lab"}, 60)
        end = roll_out(
            release.name,
            "site=lab",
            repository=repository.path,
            broker=broker,
            database=tmp_path / "rollouts.sqlite",
            devices_file=os.devnull,
            rings="1,100%",
            pick="smallest",
            health={"window_s": 1.0},
            soak_s=0,
        )
        assert end.progress.phase == "done", end
        first, second = sorted(end.devices, key=lambda one: one.ring)
        assert [one.standing for one in (first, second)] == ["confirmed", "confirmed"]
        assert first.kind == second.kind != ""
        slots = {name: SlotStore(tmp_path / name).active().slot for name in ("pi-1", "pi-2")}
        assert slots[first.device].variants is None
        assert slots[second.device].variants == ("small",)
        assert {slot.variant for slot in slots.values()} == {"small"}
        assert not (
            tmp_path / second.device / "slots" / slots[second.device].name / "artifacts" / "large.tflite"
        ).exists()

"""The agent's half killed before and after each step: whatever an append returned for waits, or has arrived."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.outbox_file import OutboxFile
from ferryman.devices.agent.spending import read_account
from tests.support.telemetry import carried, read
from tests.unit.devices.agent.test_publisher import Scene

KILLED = 9
DAY_MAX_BYTES = 100_000
ROOT = Path(__file__).parents[4]


def run(folder: Path, kill_at: int) -> None:
    """Append, send, hear receipts, lose the link, send again; dies at one of the steps."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os._exit(KILLED)

    def stepped(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            step()
            result = work(*args, **options)
            step()
            return result

        return wrapped

    OutboxFile.write = stepped(OutboxFile.write)  # type: ignore[method-assign]
    scene = Scene(folder, up=False, day_max_bytes=DAY_MAX_BYTES)
    publish = scene.link.publish

    def deliver(message, done):
        publish(message, done)
        tell(folder / "delivered", carried(read(message.payload)))
        tell(folder / "cost", [len(message.payload) + len(message.topic)])

    scene.link.publish = stepped(deliver)
    tell(folder / "birth", [scene.box.next_birth()])
    tell(folder / "appended", scene.append("note", "sample", "update"))
    scene.link.up()
    scene.turn()
    scene.receipt((1, 2))
    scene.turn(1.0)
    tell(folder / "appended", scene.append(*["note"] * 5))
    scene.turn(1.0)
    scene.link.down()
    scene.link.up()
    scene.turn(1.0)
    scene.receipt((1, 5))
    scene.turn(1.0)
    scene.turn(60.0)
    scene.box.expire()


def tell(path: Path, numbers: list[int]) -> None:
    with path.open("a") as file:
        file.write("".join(f"{number}\n" for number in numbers))


def told(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_everywhere(folder: Path) -> None:
    """Run it again and again, each time killed one step later, until it comes to its end; FOLDER/N for each."""
    ended, kills = -1, 0
    while ended != 0:
        kills += 1
        (folder / str(kills)).mkdir()
        if (child := os.fork()) == 0:
            try:
                run(folder / str(kills), kills)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in {0, KILLED}


def test_a_kill_between_any_two_steps_loses_nothing(tmp_path):
    # Forked from a process of its own: this one may have threads by now, of what other tests imported.
    subprocess.run([sys.executable, "-m", __name__, tmp_path], cwd=ROOT, check=True, timeout=120)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) > 20
    for folder in folders:
        box = Outbox(folder / "outbox.db")
        waiting = {entry.sequence for entry in box.pending(0, 100)}
        assert set(told(folder / "appended")) <= waiting | set(told(folder / "delivered"))
        assert read_account(box).spent_bytes >= sum(told(folder / "cost"))
        assert box.next_birth() > max(told(folder / "birth"), default=0)
        box.close()
        again = Scene(folder, day_max_bytes=DAY_MAX_BYTES)
        again.turn(1.0)
        assert {s for envelope in again.new() for s in carried(envelope)} == waiting
        again.box.close()


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]))

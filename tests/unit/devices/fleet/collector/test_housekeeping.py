from __future__ import annotations

import threading

from ferryman.devices.fleet.collector.housekeeping import Chore, Housekeeping
from ferryman.runtime.contracts.errors import StoreError


class Leader:
    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.released = False

    def leads(self) -> bool:
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    def release(self) -> None:
        self.released = True


def test_each_chore_is_done_once_in_its_time():
    done: list[tuple[str, int]] = []
    chores = (
        Chore("often", 5, lambda now: done.append(("often", now))),
        Chore("seldom", 60, lambda now: done.append(("seldom", now))),
    )
    housekeeping = Housekeeping(Leader(), chores)
    for at in (0, 4, 5, 9, 60):
        housekeeping.turn(float(at), at)
    assert done == [("often", 0), ("seldom", 0), ("often", 5), ("often", 60), ("seldom", 60)]


def test_who_does_not_lead_does_nothing_and_counts_all_the_same():
    done, idle, ticks = [], [], []
    housekeeping = Housekeeping(
        Leader(False, StoreError("gone"), True),
        (Chore("x", 1, done.append),),
        on_idle=lambda: idle.append(1),
        on_tick=lambda: ticks.append(1),
    )
    for at in range(3):
        housekeeping.turn(float(at), at)
    assert (done, len(idle), len(ticks)) == ([2], 2, 3)


def test_what_fails_is_said_once_and_tried_again_and_keeps_nothing_else_from_being_done(caplog):
    done = []

    def fails(now: int) -> None:
        if now < 3:
            raise StoreError("disk full")
        done.append("mended")

    def breaks(_: int) -> None:
        raise ZeroDivisionError

    chores = (Chore("a", 1, breaks), Chore("b", 1, fails), Chore("c", 1, lambda _: done.append("c")))
    housekeeping = Housekeeping(Leader(), chores)
    for at in range(4):
        housekeeping.turn(float(at), at)
    assert done == ["c", "c", "c", "mended", "c"]
    assert caplog.text.count("b: disk full") == 1
    assert "a: trying again" in caplog.text


def test_a_stop_waits_for_what_is_being_done_and_lets_another_lead():
    begun, go = threading.Event(), threading.Event()

    def work(_: int) -> None:
        begun.set()
        go.wait(60)

    leader = Leader()
    housekeeping = Housekeeping(leader, (Chore("x", 1, work),))
    housekeeping.start()
    assert begun.wait(60)
    stopping = threading.Thread(target=housekeeping.stop)
    stopping.start()
    assert not leader.released
    go.set()
    stopping.join(60)
    assert leader.released

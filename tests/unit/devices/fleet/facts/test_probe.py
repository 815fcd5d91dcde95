from __future__ import annotations

import threading
import time

import pytest
from msgspec.structs import replace

from ferryman.devices.fleet.facts.known import recall, state_home
from ferryman.devices.fleet.facts.listing import age, rows, target_of
from ferryman.devices.fleet.facts.probe import AT_ONCE, probe
from ferryman.devices.fleet.facts.ways import Answer, facts_of_status, ways_of
from ferryman.devices.fleet.inventory import AdbDevice, LocalDevice, MqttDevice, SshDevice
from ferryman.profiler.conditions import kind_of_device, read_conditions
from ferryman.profiler.facts import facts_of, read_facts
from ferryman.runtime.contracts.errors import LinkError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Unavailable
from tests.support.boards import PI_4
from tests.unit.profiler.test_facts import TOLD
from tests.unit.profiler.trees import write_tree


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def facts(tmp_path):
    return facts_of(write_tree(tmp_path / "pi", PI_4), TOLD)


def pi(name="pi", **more) -> SshDevice:
    return SshDevice(name=name, host=f"{name}.lan", user="u", **more)


def test_the_devices_file_says_which_ways_there_are():
    assert [name for name, _ in ways_of(pi())] == ["ssh"]
    assert [name for name, _ in ways_of(pi(broker="mqtt://b"))] == ["ssh", "mqtt"]
    assert [name for name, _ in ways_of(AdbDevice(adb=""))] == ["adb"]
    assert [name for name, _ in ways_of(MqttDevice(broker="mqtt://b"))] == ["mqtt"]
    assert [name for name, _ in ways_of(LocalDevice())] == ["local"]


def test_each_devices_failure_is_its_own_and_what_answered_is_kept(facts):
    def way(device, timeout_s):
        if device.name == "down":
            raise LinkError("nobody there")
        if device.name == "odd":
            raise ZeroDivisionError
        return Answer(facts, "a note")

    devices = [pi("down"), pi("odd"), pi("good")]
    found = {one.device: one for one in probe(devices, ways=lambda _: [("ssh", way)], now_ns=lambda: 42)}
    assert found["down"].failed
    assert found["down"].ways[0].error.party == "link"
    assert found["down"].facts is None
    assert "ZeroDivisionError" in found["odd"].ways[0].error.message
    good = found["good"]
    assert not good.failed
    assert (good.facts, good.way, good.ways[0].note) == (facts, "ssh", "a note")
    known = recall(devices[2])
    assert (known.facts, known.probed_at_ns, known.way) == (facts, 42, "ssh")
    assert recall(devices[0]) is None
    assert state_home().joinpath("facts").stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o077 == 0 for path in state_home().joinpath("facts").iterdir())


def test_each_way_has_its_own_result_and_the_one_that_tells_most_counts(facts):
    few = facts_of_status(Status(device="pi", online=True), pi(), "old")
    ways = [("ssh", lambda *_: Answer(few)), ("mqtt", lambda *_: Answer(facts))]
    (found,) = probe([pi()], ways=lambda _: ways)
    assert [one.way for one in found.ways] == ["ssh", "mqtt"]
    assert (found.way, found.facts) == ("mqtt", facts)

    def dead(*_):
        raise LinkError("no broker")

    (found,) = probe([pi()], ways=lambda _: [("ssh", lambda *_: Answer(few)), ("mqtt", dead)])
    assert (found.way, found.failed) == ("ssh", True)


def test_a_way_that_hangs_is_given_up_and_holds_up_nobody(facts):
    release = threading.Event()

    def way(device, timeout_s):
        if device.name == "hangs":
            release.wait(60)
        return Answer(facts)

    found = {one.device: one for one in probe([pi("hangs"), pi("good")], timeout_s=0.5, ways=lambda _: [("ssh", way)])}
    release.set()
    assert "no answer within 1.5 s" in found["hangs"].ways[0].error.message
    assert not found["good"].failed


def test_so_many_are_asked_at_once_and_no_more(facts):
    now, most, lock = 0, 0, threading.Lock()

    def way(device, timeout_s):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return Answer(facts)

    assert len(list(probe([pi(f"p{n}") for n in range(3 * AT_ONCE)], ways=lambda _: [("ssh", way)]))) == 3 * AT_ONCE
    assert 1 < most <= AT_ONCE


def test_a_device_that_no_way_leads_to_is_a_failure():
    (found,) = probe([pi()], ways=lambda _: [])
    assert found.failed
    assert found.ways == ()


def test_what_is_known_belongs_to_an_address_and_a_root(facts):
    list(probe([pi()], ways=lambda _: [("ssh", lambda *_: Answer(facts))]))
    assert recall(pi()) is not None
    assert recall(pi(port=2222)) is None
    assert recall(SshDevice(name="other", host="pi.lan", user="u")) is not None  # by whatever name


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"device":1}'])
def test_what_is_known_and_damaged_is_not_known(facts, damage):
    list(probe([pi()], ways=lambda _: [("ssh", lambda *_: Answer(facts))]))
    (file,) = state_home().joinpath("facts").iterdir()
    file.write_bytes(damage)
    assert recall(pi()) is None


def test_a_list_and_its_queries_know_the_model(facts):
    list(probe([pi(labels={"site": "lab"})], ways=lambda _: [("ssh", lambda *_: Answer(facts))]))
    target = target_of(pi(labels={"site": "lab"}))
    assert (target.model, target.label("site")) == ("Raspberry Pi 4 Model B Rev 1.4, 4x Cortex-A72", "lab")
    (row,) = rows([pi()])
    assert row.known.facts == facts
    assert rows([pi("new")])[0].known is None


def test_a_query_knows_the_model_that_an_agent_there_says(tmp_path):
    """Also where no board is told: a virtual machine has its processor alone."""
    here = read_conditions({})
    own = read_facts(tmp_path, synchronized=True)
    for board in ("A Board", Unavailable(reason="no board is told")):
        told = replace(own, model=board)
        list(probe([pi()], ways=lambda _, told=told: [("ssh", lambda *_: Answer(told))]))
        assert target_of(pi()).model == kind_of_device(replace(here, device_model=board))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "just now"), (0, "just now"), (59, "just now"), (60, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_age_is_told_for_people(seconds, words):
    assert age(10**18, 10**18 + seconds * 10**9) == words


def test_a_status_tells_a_few_facts_and_why_not_the_others():
    status = Status(
        device="pi",
        online=True,
        ferryman="0.1.0",
        model="Raspberry Pi 4",
        interpreters={"executorch": "1.5.1"},
        standing={"machine": "aarch64", "isa": "asimd", "soc": "brcm,bcm2711", "kernel": "6.6", "python": "3.11.2"},
    )
    found = facts_of_status(status, pi(), "too old")
    assert (found.model, found.soc, found.machine, found.isa) == (
        "Raspberry Pi 4",
        "brcm,bcm2711",
        "aarch64",
        ("asimd",),
    )
    assert found.interpreters[0].name == "executorch"
    assert found.memory_bytes == Unavailable(reason="too old")

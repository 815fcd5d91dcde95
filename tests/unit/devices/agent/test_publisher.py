"""The publisher turn by turn, with a link and clocks of the test's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ferryman.devices import topics
from ferryman.devices.agent import publisher as module
from ferryman.devices.agent.modes import METERED_EVERY_S
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.publisher import LINGER_S, POLL_S, Publisher
from ferryman.devices.agent.spending import TelemetryConfig, read_account
from ferryman.devices.agent.window import Limits
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Message
from ferryman.runtime.contracts.envelope import Envelope, Receipt
from ferryman.runtime.contracts.record import Record, encode
from tests.support.telemetry import carried, read
from tests.unit.devices.agent.test_upkeep import Hands

HOUR = 3600 * 10**9
LIMITS = Limits(again_first_s=30.0, spread_s=0.0)


class Text(Record):
    text: str = ""


class FakeLink:
    """Keeps what is published; the test answers."""

    def __init__(self) -> None:
        self.paused = False
        self.farewells: list[Message | None] = []
        self.broker = BrokerConfig(host="h", port=1)
        self.packet_max_bytes: int | None = None
        self.sent: list[tuple[Message, Callable[[str | None], None]]] = []
        self.callbacks: list[Callable[[], None]] = []

    def subscribe(self, topic, handler):
        assert topic == topics.receipt("pi")
        self.receive = handler

    def on_ready(self, callback):
        self.up = callback

    def on_down(self, callback):
        self.down = callback

    def publish(self, message, done):
        self.sent.append((message, done))

    def pause(self, farewell=None):
        self.paused = True
        self.farewells.append(farewell)

    def resume(self):
        self.paused = False


class Scene:
    """One publisher, driven by hand."""

    def __init__(
        self, folder: Path, *, limits: Limits = LIMITS, confirm="collector", up: bool = True, **config
    ) -> None:
        self.hands = Hands()
        self.box = Outbox(folder / "outbox.db", clock=self.hands)
        self.mode = "full"
        self.link = FakeLink()
        self.publisher = Publisher(
            self.box,
            "pi",
            self.link,
            limits=limits,
            confirm=confirm,
            config=TelemetryConfig(**config),
            mode=lambda: self.mode,
        )
        self.now = 1000.0
        self.taken = 0
        if up:
            self.link.up()
            self.turn()

    def append(self, *kinds: str, size: int = 0) -> list[int]:
        return self.box.append_all([(kind, Text(text="x" * size)) for kind in kinds])

    def turn(self, later_s: float = 0.0) -> float:
        self.now += later_s
        return self.publisher._turn(self.now)

    def new(self) -> list[Envelope]:
        """What was published since the last call."""
        new = [read(message.payload) for message, _ in self.link.sent[self.taken :]]
        self.taken = len(self.link.sent)
        return new

    def answer(self, problem: str | None = None) -> None:
        """Answer the last message."""
        self.link.sent[-1][1](problem)

    def receipt(self, *ranges: tuple[int, int]) -> None:
        payload = encode(Receipt(boot=self.box.boot, ranges=ranges))
        self.link.receive(type("Delivery", (), {"payload": payload, "topic": "t"}))

    def cost(self) -> int:
        return sum(len(m.payload) + len(m.topic) for m, _ in self.link.sent)


def sequences(envelopes: list[Envelope]) -> list[list[int]]:
    return [carried(envelope) for envelope in envelopes]


def test_a_single_record_goes_at_once_where_nothing_is_under_way(tmp_path):
    scene = Scene(tmp_path)
    scene.append("note")
    scene.turn()
    assert sequences(scene.new()) == [[1]]


def test_under_load_records_gather_for_a_moment(tmp_path):
    scene = Scene(tmp_path)
    scene.append("note")
    scene.turn()
    scene.append("note")
    assert scene.turn() == pytest.approx(LINGER_S)
    scene.append("note")
    assert scene.turn(LINGER_S / 2) == pytest.approx(LINGER_S / 2)
    assert sequences(scene.new()) == [[1]]
    scene.turn(LINGER_S)
    assert sequences(scene.new()) == [[2, 3]]


def test_what_gathers_goes_as_soon_as_nothing_is_under_way(tmp_path):
    scene = Scene(tmp_path)
    scene.append("note")
    scene.turn()
    scene.append("note")
    scene.turn()
    scene.answer()
    scene.turn()
    assert sequences(scene.new()) == [[1], [2]]


def test_a_full_message_does_not_wait(tmp_path):
    scene = Scene(tmp_path)
    scene.append("note")
    scene.turn()
    scene.append(*["note"] * 2500)
    scene.turn()
    assert [len(part) for part in sequences(scene.new())] == [1, 1000, 1000]
    scene.turn(LINGER_S + 0.01)
    assert [len(part) for part in sequences(scene.new())] == [500]


def test_what_waited_before_the_link_came_up_is_history_and_what_comes_then_is_not(tmp_path):
    scene = Scene(tmp_path, up=False)
    scene.append("note", "note")
    scene.turn()
    scene.link.up()
    scene.turn()
    scene.append("note")
    scene.turn(1.0)
    scene.turn(1.0)
    assert [(carried(e), e.historical) for e in scene.new()] == [([1, 2], True), ([3], False)]
    scene.link.down()
    scene.link.up()
    scene.turn()
    assert [(carried(e), e.historical) for e in scene.new()] == [([1, 2, 3], True)]


def test_what_is_sent_again_is_history_and_no_more_than_is_missing(tmp_path):
    scene = Scene(tmp_path)
    scene.append(*["note"] * 5)
    scene.turn()
    scene.new()
    scene.receipt((2, 3))
    scene.turn(40.0)
    assert [(carried(e), e.historical) for e in scene.new()] == [([1, 4, 5], True)]
    scene.receipt((1, 5))
    scene.turn(1000.0)
    assert scene.new() == []
    assert scene.box.counts().records == 0


def test_a_refused_message_is_sent_in_parts_and_no_later_one_is_as_large(tmp_path):
    scene = Scene(tmp_path)
    scene.append(*["note"] * 1000, size=200)
    scene.turn()
    assert len(scene.new()) == 1
    accepted, refused = [], 0
    for _ in range(60):
        for message, done in scene.link.sent:
            envelope = read(message.payload)
            fits = len(envelope.items) <= 70
            refused += not fits
            accepted += carried(envelope) if fits else []
            done(None if fits else "Packet too large: the broker takes less")
        scene.link.sent.clear()
        scene.turn(LINGER_S + 0.01)
    assert sorted(accepted) == list(range(1, 1001))
    assert refused < 20
    assert scene.publisher.refused == refused


def test_a_single_record_that_is_too_large_stays_and_does_not_keep_others(tmp_path, caplog):
    scene = Scene(tmp_path)
    scene.append("note", size=5000)
    scene.turn()
    scene.answer("Packet too large")
    scene.append("note")
    scene.turn()
    assert sequences(scene.new()) == [[1], [2]]
    assert "Packet too large; kept" in caplog.text
    assert scene.box.counts().records == 2


def test_what_the_broker_says_it_takes_is_kept_to(tmp_path):
    scene = Scene(tmp_path)
    scene.link.packet_max_bytes = 5000
    chance = random.Random(1)  # noqa: S311
    scene.box.append_all([("note", Text(text=chance.randbytes(100).hex())) for _ in range(100)])
    for _ in range(40):
        scene.turn(1.0)
        if scene.link.sent:
            scene.answer()
    assert max(len(message.payload) for message, _ in scene.link.sent) < 5000 - 100
    assert {s for part in sequences(scene.new()) for s in part} == set(range(1, 101))


def test_a_link_that_breaks_with_every_message_is_given_smaller_ones(tmp_path):
    scene = Scene(tmp_path)
    scene.append(*["note"] * 1000, size=200)
    sizes = []
    for _ in range(5):
        scene.turn()
        sizes.append(len(scene.new()[0].items))
        scene.link.down()
        scene.link.up()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 8


def test_a_metered_link_carries_what_matters_every_quarter_of_an_hour(tmp_path):
    scene = Scene(tmp_path)
    scene.mode = "metered"
    scene.append("sample", "note", "update", "log")
    scene.turn(1.0)
    assert sequences(scene.new()) == [[2, 3]]
    scene.receipt((2, 3))
    scene.append("note")
    scene.turn(1.0)
    scene.append("update")
    scene.turn(METERED_EVERY_S - 10)
    assert scene.new() == []
    scene.turn(10.0)
    assert [(carried(e), e.historical) for e in scene.new()] == [([5, 6], False)]
    scene.mode = "full"
    scene.turn(1.0)
    assert [(carried(e), e.historical) for e in scene.new()] == [([1, 4], True)]


def test_offline_pauses_the_link_until_the_mode_changes(tmp_path):
    scene = Scene(tmp_path)
    scene.mode = "offline"
    scene.turn(1.0)
    assert scene.link.paused
    scene.link.down()
    scene.append("update")
    scene.turn(1.0)
    assert scene.new() == []
    scene.mode = "full"
    scene.turn(1.0)
    assert not scene.link.paused
    scene.link.up()
    scene.turn()
    assert sequences(scene.new()) == [[1]]


def test_a_switched_mode_is_told_and_who_goes_offline_says_so(tmp_path):
    mode, told, link = ["full"], [], FakeLink()
    publisher = Publisher(
        Outbox(tmp_path / "o"),
        "pi",
        link,
        mode=lambda: mode[0],
        on_mode=lambda: told.append(mode[0]),
        farewell=lambda: Message(topic="status", payload=b"on purpose"),
    )
    for step, mode[0] in enumerate(["full", "metered", "metered", "offline", "full"]):
        publisher._turn(1000.0 + step)
    assert told == ["metered", "offline", "full"]
    assert [one.payload for one in link.farewells if one] == [b"on purpose"]


def test_the_log_says_once_a_day_that_the_budget_is_used_up(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "RENEWAL_SPREAD_S", 0.0)
    scene = Scene(tmp_path, day_max_bytes=10_000)

    def day() -> int:
        caplog.clear()
        chance = random.Random(scene.now)  # noqa: S311
        scene.box.append_all([("note", Text(text=chance.randbytes(400).hex())) for _ in range(40)])
        for _ in range(30):
            scene.turn(1.0)
        return caplog.text.count("budget is used up")

    scene.append("note")
    scene.turn(1.0)
    assert "used up" not in caplog.text
    assert day() == 1
    assert day() == 0
    scene.hands.pass_(25 * HOUR)
    assert day() == 1


def test_an_agent_that_starts_offline_does_not_connect_first(tmp_path):
    link = FakeLink()
    Publisher(Outbox(tmp_path / "o"), "pi", link, mode=lambda: "offline")
    assert link.paused


def test_what_is_over_the_days_budget_waits_and_what_is_vital_has_a_share_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RENEWAL_SPREAD_S", 0.0)
    scene = Scene(tmp_path, day_max_bytes=20_000)
    chance = random.Random(1)  # noqa: S311
    scene.box.append_all([("note", Text(text=chance.randbytes(400).hex())) for _ in range(40)])
    for _ in range(30):
        scene.turn(1.0)
    cost = scene.cost()
    assert 15_000 < cost <= 18_000
    scene.append("update")
    scene.turn(1.0)
    assert scene.new()[-1].items[0].kind == "update"
    for _ in range(30):
        scene.append("update", size=2000)
        scene.turn(31.0)
    assert scene.cost() <= 20_000
    waiting = scene.box.counts().records
    scene.new()
    again = Scene(tmp_path, day_max_bytes=20_000)  # a restart wins nothing
    again.turn(1.0)
    assert again.cost() < 20_000 - cost
    for _ in range(26):
        again.hands.pass_(HOUR)
        again.turn(3600.0)
    assert again.cost() > 15_000
    assert again.box.counts().records == waiting


def test_a_record_larger_than_a_whole_days_budget_is_sent_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RENEWAL_SPREAD_S", 0.0)
    scene = Scene(tmp_path, day_max_bytes=10_000)
    scene.append("note")
    scene.turn()
    scene.box.append("note", Text(text=random.Random(1).randbytes(15_000).hex()))  # noqa: S311
    scene.turn(31.0)
    assert sequences(scene.new())[0] == [1]
    scene.receipt((1, 1))
    for _ in range(25):
        scene.hands.pass_(HOUR)
        scene.turn(3600.0)
    assert [2] in sequences(scene.new())
    spent = scene.cost()
    for _ in range(24):
        scene.hands.pass_(HOUR)
        scene.turn(3600.0)
    assert scene.cost() == spent, "what it cost comes off the next days"


def test_a_fleet_that_waited_for_its_budget_does_not_send_at_one_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    scene = Scene(tmp_path, day_max_bytes=10_000)
    for _ in range(20):
        scene.box.append("note", Text(text=random.Random(1).randbytes(1000).hex()))  # noqa: S311
        scene.turn(1.0)
    scene.hands.pass_(13 * HOUR)
    scene.new()
    scene.turn(1.0)
    assert scene.new() == []
    scene.turn(module.RENEWAL_SPREAD_S)
    assert scene.new() != []


def test_a_fleet_whose_broker_comes_back_does_not_send_at_one_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    scene = Scene(tmp_path, limits=Limits(spread_s=5.0))
    scene.append("note")
    scene.turn()
    assert len(scene.new()) == 1, "the first connection of all waits for nobody"
    scene.link.down()
    scene.link.up()
    assert scene.turn() == POLL_S
    scene.turn(4.9)
    assert scene.new() == []
    scene.turn(0.2)
    assert len(scene.new()) == 1


def test_a_rate_is_kept_to(tmp_path):
    scene = Scene(tmp_path, rate_bytes_s=2000)
    chance = random.Random(1)  # noqa: S311
    scene.box.append_all([("note", Text(text=chance.randbytes(200).hex())) for _ in range(100)])
    for second in range(1, 40):
        for _ in range(10):
            scene.turn(0.1)
            if scene.link.sent:
                scene.answer()
        assert scene.cost() <= 2000 * (second + 1)
    assert {s for part in sequences(scene.new()) for s in part} == set(range(1, 101))


@pytest.mark.parametrize("jump_h", [-24 * 400, 24 * 400])
def test_a_clock_that_jumps_disturbs_nothing(tmp_path, jump_h):
    scene = Scene(tmp_path)
    scene.append("note", "sample")
    scene.turn()
    scene.hands.reading = scene.hands.reading._replace(time_ns=max(0, scene.hands.reading.time_ns + jump_h * HOUR))
    scene.append("note")
    scene.turn(1.0)
    scene.turn(1.0)
    assert sequences(scene.new()) == [[1, 2], [3]]
    scene.receipt((1, 3))
    scene.turn(100.0)
    assert scene.new() == []
    assert scene.box.counts().records == 0


def test_the_brokers_word_frees_records_where_it_is_asked_for(tmp_path):
    scene = Scene(tmp_path, confirm="broker")
    scene.append(*["note"] * 10)
    scene.turn()
    scene.answer("Not authorized")
    scene.turn()
    assert scene.box.counts().records == 10
    scene.turn(31.0)
    scene.answer()
    scene.turn()
    assert scene.box.counts().records == 0


def test_on_a_full_disk_nothing_is_sent_that_a_budget_cannot_count(tmp_path, monkeypatch):
    scene = Scene(tmp_path, day_max_bytes=20_000)
    scene.append("note")

    def full(*_args, **_options):
        raise module.DeviceError("full")

    monkeypatch.setattr(scene.box, "keep_note", full)
    with pytest.raises(module.DeviceError):
        scene.turn()
    assert scene.new() == []
    monkeypatch.undo()
    scene.turn()
    assert sequences(scene.new()) == [[1]]


def test_an_outbox_that_is_replaced_is_sent_from_its_beginning_and_the_budget_goes_on(tmp_path):
    scene = Scene(tmp_path, day_max_bytes=20_000)
    scene.append(*["note"] * 50)
    scene.turn()
    spent = read_account(scene.box).spent_bytes
    scene.new()
    for part in tmp_path.glob("outbox.db*"):
        part.unlink()
    scene.append("note")
    scene.turn(1.0)
    (envelope,) = scene.new()
    assert (carried(envelope), envelope.boot, envelope.historical) == ([1], scene.box.boot, False)
    assert read_account(scene.box).spent_bytes > spent


def test_nobody_can_vouch_for_what_was_not_sent(tmp_path, caplog):
    scene = Scene(tmp_path)
    scene.mode = "metered"
    scene.turn(POLL_S)
    scene.append("sample", "update", "sample", "update", "sample")
    scene.turn(1.0)
    assert sequences(scene.new()) == [[2, 4]]
    for _ in range(3):
        scene.receipt((1, (1 << 63) - 1))
        scene.turn(1.0)
    assert [entry.sequence for entry in scene.box.pending(0, 10)] == [1, 3, 5]
    assert sum("of which this start sent 4" in record.getMessage() for record in caplog.records) == 1
    scene.mode = "full"
    scene.turn(POLL_S)
    scene.turn(LINGER_S + POLL_S)
    assert sequences(scene.new()) == [[1, 3, 5]]
    scene.receipt((1, (1 << 63) - 1))
    scene.turn(1.0)
    assert scene.box.counts().records == 0


def test_a_receipt_for_what_an_earlier_connection_sent_counts_and_of_an_earlier_start_once_it_is_sent_again(tmp_path):
    scene = Scene(tmp_path)
    scene.append("note", "note")
    scene.turn()
    scene.link.down()
    scene.turn()
    scene.receipt((1, 1))
    scene.turn()
    assert [entry.sequence for entry in scene.box.pending(0, 10)] == [2]
    scene.box.close()
    again = Scene(tmp_path, up=False)
    again.receipt((2, 2))
    again.turn()
    assert again.box.counts().records == 1
    again.link.up()
    again.turn()
    assert sequences(again.new()) == [[2]]
    again.receipt((2, 2))
    again.turn()
    assert again.box.counts().records == 0


def test_what_was_appended_last_goes_before_it_stops(tmp_path):
    """In the middle of a turn, and behind a message under way, which others would wait for."""
    scene = Scene(tmp_path)
    scene.append("note")
    turn = scene.publisher._turn

    def last(now):
        wait_s = turn(now)
        if not scene.publisher._stopping.is_set():
            scene.append("note")
            scene.publisher._stopping.set()
        return wait_s

    scene.publisher._turn = last
    scene.publisher.start()
    assert scene.publisher._stopping.wait(60)
    scene.publisher.stop()
    assert [carried(one) for one in scene.new()] == [[1], [2]]

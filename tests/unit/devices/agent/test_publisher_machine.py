"""The publisher under any order of events: nothing is lost, nothing goes that may not, order is kept."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ferryman.devices.agent.modes import METERED_EVERY_S
from ferryman.devices.agent.publisher import POLL_S
from ferryman.runtime.contracts.telemetry import Priority, priority
from tests.support.telemetry import carried, read
from tests.unit.devices.agent.test_publisher import Scene, Text

DAY_MAX_BYTES = 10_000
KINDS = ("sample", "note", "update")
REASONS = (None, None, None, "Not authorized", "Packet too large: told")


class PublisherMachine(RuleBasedStateMachine):
    """The link, the broker and the collector are the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.scene = Scene(Path(self.folder.name), day_max_bytes=DAY_MAX_BYTES)
        self.kinds: dict[int, str] = {}
        self.confirmed: set[int] = set()
        self.seen = 0
        self.up = True
        self.new_connection()

    def new_connection(self) -> None:
        self.first_sent = dict.fromkeys(Priority, 0)
        """The newest of each priority that this connection carried."""

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=30), size=st.integers(0, 1000))
    def append(self, kinds: list[str], size: int) -> None:
        records = [(kind, Text(text=random.randbytes(size).hex())) for kind in kinds]  # noqa: S311  # not to be compressed
        self.kinds.update(zip(self.scene.box.append_all(records), kinds, strict=True))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 40.0, METERED_EVERY_S]))
    def turn(self, seconds: float) -> None:
        self.scene.hands.pass_(int(seconds * 1e9))
        self.scene.turn(seconds)
        self.look()

    @rule(hours=st.integers(1, 30))
    def sleep(self, hours: int) -> None:
        self.scene.hands.pass_(hours * 3600 * 10**9)
        self.turn(hours * 3600.0)

    @rule(days=st.integers(-400, 400))
    def clock_jumps(self, days: int) -> None:
        reading = self.scene.hands.reading
        self.scene.hands.reading = reading._replace(time_ns=max(0, reading.time_ns + days * 86_400 * 10**9))

    @rule(which=st.integers(0, 5), reason=st.sampled_from(REASONS))
    def broker_answers(self, which: int, reason: str | None) -> None:
        if len(self.scene.link.sent) > which:
            self.scene.link.sent[-1 - which][1](reason)

    @rule()
    def what_the_broker_has_is_lost(self) -> None:
        for _, done in self.scene.link.sent:
            done(None)
        self.scene.link.sent.clear()
        self.seen = 0

    @rule(first=st.integers(1, 200), length=st.integers(0, 40))
    def collector_confirms(self, first: int, length: int) -> None:
        arrived = {s for message, _ in self.scene.link.sent for s in carried(read(message.payload))}
        here = sorted(s for s in arrived if first <= s <= first + length)
        if here and self.up:
            self.confirmed |= set(here)
            self.scene.receipt(*((s, s) for s in here))

    @rule(mode=st.sampled_from(["full", "metered", "offline"]))
    def switched(self, mode: str) -> None:
        self.scene.mode = mode
        self.turn(POLL_S)  # by then it is noticed

    @rule()
    def link_breaks(self) -> None:
        self.scene.link.down()
        self.up = False

    @rule()
    def link_comes(self) -> None:
        if not self.scene.link.paused and not self.up:
            self.scene.link.up()
            self.up = True
            self.new_connection()

    @rule()
    def agent_restarts(self) -> None:
        mode, hands = self.scene.mode, self.scene.hands
        self.scene.box.close()
        self.scene = Scene(Path(self.folder.name), day_max_bytes=DAY_MAX_BYTES, up=False)
        self.scene.mode = mode
        self.scene.hands.reading = hands.reading
        self.up, self.seen = False, 0

    def look(self) -> None:
        waiting = {entry.sequence: entry.priority for entry in self.scene.box.pending(0, 10_000)}
        for message, _ in self.scene.link.sent[self.seen :]:
            assert self.up
            envelope = read(message.payload)
            sequences = carried(envelope)
            assert sequences == sorted(set(sequences))
            for item in envelope.items:
                level = priority(item.kind)
                assert self.kinds[item.sequence] == item.kind
                assert self.scene.mode != "offline"
                assert not (self.scene.mode == "metered" and level == Priority.BULK)
                if item.sequence <= self.first_sent[level]:
                    assert envelope.historical, "what is sent again is history"
                    continue
                over = range(self.first_sent[level] + 1, item.sequence)
                assert not [s for s in over if waiting.get(s) == level], "a record was passed over"
                self.first_sent[level] = item.sequence
        self.seen = len(self.scene.link.sent)

    @invariant()
    def all_is_somewhere(self) -> None:
        waiting = {entry.sequence for entry in self.scene.box.pending(0, 10_000)}
        assert self.kinds.keys() - waiting <= self.confirmed

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.scene.publisher._spending._account.spent_bytes <= DAY_MAX_BYTES

    def teardown(self) -> None:
        self.scene.mode = "full"
        self.link_comes()
        for _ in range(3000):
            waiting = {entry.sequence for entry in self.scene.box.pending(0, 10_000)}
            if not waiting:
                break
            self.scene.hands.pass_(3600 * 10**9)
            self.scene.turn(3600.0)
            if not self.up and not self.scene.link.paused:
                self.link_comes()
            for message, done in self.scene.link.sent:
                done(None)
                self.scene.receipt(*((s, s) for s in carried(read(message.payload))))
            self.scene.link.sent.clear()
        assert self.scene.box.counts().records == 0, "in the end all arrives"
        self.scene.box.close()
        self.folder.cleanup()


TestPublisherMachine = PublisherMachine.TestCase
TestPublisherMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.publisher import Limits, Window

SMALL = Limits(in_flight=3, unconfirmed=5)


def test_the_window_is_bounded_by_what_the_broker_has_not_acknowledged():
    window = Window(SMALL)
    for sequence in (1, 2, 3):
        window.sent(sequence, again_at=10.0)
    assert window.room() == 0
    window.answered(1)
    assert window.room() == 1


def test_the_window_is_bounded_by_what_the_collector_has_not_confirmed():
    window = Window(SMALL)
    for sequence in range(1, 6):
        window.sent(sequence, again_at=10.0)
        window.answered(sequence)
    assert window.room() == 0
    window.confirmed(1, 2)
    assert window.room() == 2


def test_what_is_not_confirmed_is_due_again_and_what_is_confirmed_is_not():
    window = Window(SMALL)
    window.sent(1, again_at=10.0)
    window.sent(2, again_at=20.0)
    window.answered(1)
    assert window.due(9.9) == []
    assert window.due(10.0) == [1]
    window.confirmed(1, 1)
    assert window.due(30.0) == [2]


def test_after_a_reconnect_everything_is_sent_again():
    window = Window(SMALL)
    window.sent(7, again_at=10.0)
    window.reset()
    assert (window.cursor, window.room(), window.due(99.0)) == (0, 3, [])


@given(
    st.lists(st.tuples(st.sampled_from(["send", "answer", "confirm", "reset"]), st.integers(1, 12), st.integers(0, 3)))
)
def test_no_order_of_events_breaks_the_bounds(events):
    window = Window(SMALL)
    for event, sequence, length in events:
        if event == "send" and window.room():
            window.sent(window.cursor + 1, again_at=float(sequence))
        elif event == "answer":
            window.answered(sequence)
        elif event == "confirm":
            window.confirmed(sequence, sequence + length)
            assert not [s for s in window.due(99.0) if sequence <= s <= sequence + length]
        elif event == "reset":
            window.reset()
        assert len(window.in_flight) <= SMALL.in_flight
        assert window.in_flight <= window.again_at.keys()
        assert len(window.again_at) <= SMALL.unconfirmed
        assert all(s <= window.cursor for s in window.again_at)

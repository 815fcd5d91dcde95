from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.window import SIZE_MIN_BYTES, Limits, Size, Window
from ferryman.runtime.contracts.telemetry import Priority

SMALL = Limits(in_flight=3, in_flight_bytes=250, unconfirmed=5, unconfirmed_bytes=400)
NORMAL = Priority.NORMAL


def send(window: Window, *sequences: int, size: int = 10, again_at: float = 10.0) -> int:
    return window.sent({NORMAL: list(sequences)}, size, 1000, again_at)


def test_the_window_is_bounded_by_messages_the_broker_has_not_acknowledged():
    window = Window(SMALL)
    first = send(window, 1)
    send(window, 2)
    send(window, 3)
    assert window.room() == 0
    window.answered(first)
    assert window.room() > 0


def test_the_window_is_bounded_by_messages_the_collector_has_not_confirmed():
    window = Window(SMALL)
    for sequence in range(1, 6):
        window.answered(send(window, sequence))
    assert window.room() == 0
    window.confirmed(1, 2)
    assert window.room() > 0


def test_the_window_is_bounded_by_bytes_too():
    window = Window(SMALL)
    number = send(window, 1, size=240)
    assert window.room() == 10
    window.answered(number)
    assert window.room() == 160
    window.confirmed(1, 1)
    assert window.room() == 250


def test_what_is_not_confirmed_is_due_again_and_what_is_confirmed_is_not():
    window = Window(SMALL)
    send(window, 1, 2, 3)
    send(window, 4, again_at=20.0)
    window.confirmed(2, 2)
    assert window.overdue(9.9) == 0
    assert window.overdue(10.0) == 2
    assert list(window.again) == [(NORMAL, [1, 3])]
    window.confirmed(4, 4)
    assert window.overdue(30.0) == 0


def test_what_goes_again_goes_by_priority():
    window = Window(SMALL)
    window.sent({Priority.BULK: [1, 3], Priority.VITAL: [2]}, 10, 1000, 5.0)
    window.overdue(5.0)
    assert dict(window.again) == {Priority.BULK: [1, 3], Priority.VITAL: [2]}


def test_a_message_that_others_overtook_goes_again_in_two():
    window = Window(SMALL)
    send(window, 1, 2, 3)
    send(window, 4, 5)
    window.confirmed(4, 5)
    window.overdue(10.0)
    assert [part for _, part in window.again] == [[1, 2], [3]]


def test_after_a_reconnect_everything_is_sent_again_and_late_answers_mean_nothing():
    window = Window(SMALL)
    number = send(window, 7)
    window.reset()
    assert (window.room(), window.overdue(99.0)) == (250, 0)
    assert window.answered(number) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "answer", "confirm", "wait", "reset"]), st.integers(1, 12), st.integers(0, 3)
        )
    )
)
def test_no_order_of_events_breaks_the_bounds_or_forgets_a_record(events):
    window = Window(SMALL)
    newest, numbers, unconfirmed = 0, [0], set()
    for event, chosen, length in events:
        if event == "send" and (room := window.room()):
            sequences = list(range(newest + 1, newest + 2 + length))
            newest = sequences[-1]
            unconfirmed |= set(sequences)
            numbers.append(send(window, *sequences, size=min(room, chosen * 20), again_at=float(chosen)))
        elif event == "answer":
            window.answered(numbers[chosen % len(numbers)])
        elif event == "confirm":
            window.confirmed(chosen, chosen + length)
            again = {s for _, part in window.again for s in part}
            unconfirmed -= {s for s in range(chosen, chosen + length + 1) if s not in again}
        elif event == "wait":
            window.overdue(float(chosen))
        elif event == "reset":
            window.reset()
            unconfirmed = set()
        flying = [sent for sent in window.messages.values() if sent.in_flight]
        assert len(flying) == window.in_flight <= SMALL.in_flight
        assert sum(sent.size for sent in flying) <= SMALL.in_flight_bytes
        assert len(window.messages) <= SMALL.unconfirmed
        assert sum(sent.size for sent in window.messages.values()) <= SMALL.unconfirmed_bytes
        held = [s for sent in window.messages.values() for part in sent.carried.values() for s in part]
        held += [s for _, part in window.again for s in part]
        assert sorted(held) == sorted(unconfirmed)


def test_a_size_that_was_refused_is_not_tried_again():
    size = Size(1 << 18)
    for _ in range(20):  # all of that size that were under way
        size.refused(1 << 18)
    assert size.bytes == 1 << 17
    size.arrived()
    assert size.bytes == 1 << 17


def test_a_link_that_carries_nothing_is_tried_with_less_and_then_with_more():
    size = Size(1 << 18)
    for _ in range(20):
        size.lost()
    assert size.bytes == SIZE_MIN_BYTES
    for _ in range(20):
        size.arrived()
    assert size.bytes == 1 << 18

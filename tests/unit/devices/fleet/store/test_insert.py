"""What one batch does to the store, in both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from ferryman.devices.fleet.store.store import Arrived, Bad, Batch, Row
from ferryman.devices.fleet.store.tables import (
    CORRECTED,
    HOUR_S,
    SURE,
    UNSURE,
    clocks,
    devices,
    dirty,
    latest,
    records,
    sources,
)
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.telemetry import ClockFix

NOW = 1_700_000_000 * 10**9
HOUR = HOUR_S * 10**9
SECOND = 10**9
BOOT = "outbox.kernel"


def row(sequence: int, **changed) -> Row:
    return Row(sequence, "note", NOW, sequence, True, b'{"n": 1}')._replace(**changed)


def message(*rows: Row, device: str = "pi", boot: str = BOOT) -> Arrived:
    return Arrived(device, boot, rows, f"ferryman/v1/{device}/telemetry", b"raw of %d" % rows[0].sequence)


def put(store, *messages: Arrived, now_ns: int = NOW):
    return store.insert(Batch(messages), now_ns)


def times(store) -> dict[int, tuple[int, int, int]]:
    query = select(records.c.sequence, records.c.time_ns, records.c.recorded_ns, records.c.clock)
    return {sequence: tuple(rest) for sequence, *rest in store.read(query)}


def fix(sequence: int, offset_ns: int, uptime_ns: int, kernel_boot: str = "kernel") -> Row:
    body = encode(ClockFix(kernel_boot=kernel_boot, offset_ns=offset_ns))
    return row(sequence, kind="clock", uptime_ns=uptime_ns, body=body)


def test_messages_of_many_devices_go_in_at_once_and_again_change_nothing(both):
    messages = [message(row(n), row(n + 1), device=f"d{n % 7}") for n in range(1, 100, 2)]
    assert put(both, *messages) == (100, 0, 0)
    assert put(both, *messages[:10], message(row(1), row(2000), device="d1")) == (1, 21, 0)
    assert len(both.read(select(sources))) == 7
    assert both.totals().records == 101


def test_a_number_is_free_in_another_boot_and_another_device(both):
    messages = [message(row(1)), message(row(1), boot="outbox.other"), message(row(1), device="nano")]
    assert put(both, *messages) == (3, 0, 0)


@pytest.mark.parametrize(
    "changed", [{"kind": "memo"}, {"time_ns": 1}, {"uptime_ns": 9}, {"uptime_ns": None}, {"body": b"2"}]
)
def test_what_conflicts_is_quarantined_as_its_message_and_the_rest_of_it_is_taken(both, changed):
    put(both, message(row(1), row(2)))
    other = message(row(2, **changed), row(3))
    assert put(both, other, other) == (1, 1, 2)
    (found,) = both.quarantine()
    assert (found.raw, found.times) == (b"raw of 2", 2)
    assert found.reason.endswith("is stored (sequence 2)")
    assert both.totals().records == 3


def test_the_first_of_a_batch_wins(both):
    assert put(both, message(row(1)), message(row(1, body=b"2")), message(row(1))) == (1, 1, 1)
    assert both.read(select(records.c.body)) == [('{"n": 1}',)]


@pytest.mark.parametrize(
    "body", [b'"a\\u0000b"', b'"\\\\n"', b'{"a":\t1,\r\n"b": "\xc3\xbc"}', b'"\xf0\x9f\x98\x80"', b"1"]
)
def test_bodies_are_kept_byte_for_byte(both, body):
    put(both, message(row(1, body=body, kind="k\\\t\nind")))
    assert [(r.kind, r.body.encode()) for r in both.read(select(records))] == [("k\\\t\nind", body)]
    assert put(both, message(row(1, body=body, kind="k\\\t\nind"))) == (0, 1, 0)


def test_a_zero_character_in_a_name_quarantines_its_message_alone(both):
    bad = [message(row(1, kind="a\0b")), message(row(2), boot="a\0.b")]
    assert put(both, *bad, message(row(3))) == (1, 0, 0)
    assert {(q.raw, q.reason) for q in both.quarantine()} == {
        (b"raw of 1", "kind or boot holds a zero character"),
        (b"raw of 2", "kind or boot holds a zero character"),
    }
    assert both.totals().records == 1


def test_a_bad_message_of_any_bytes_is_kept(both):
    both.insert(Batch(bad=[Bad("t\0\ud800", b"\0\xff", "because\0")]), NOW)
    assert both.quarantine()[0].raw == b"\0\xff"


def test_the_newest_of_each_kind_is_live_and_what_is_older_never_overwrites_it(both):
    put(both, message(row(1, kind="sample", body=b"1"), row(2, kind="sample", body=b"2", time_ns=NOW + 1)))
    put(both, message(row(3, kind="sample", body=b"3", time_ns=NOW - 1), row(4, kind="slots", body=b"4")))
    put(both, message(row(5)), message(row(1, kind="sample", body=b"5"), device="nano"))
    query = select(latest.c.device, latest.c.kind, latest.c.body).order_by("device", "kind")
    assert both.read(query) == [("nano", "sample", "5"), ("pi", "sample", "2"), ("pi", "slots", "4")]


def test_a_conflicting_record_is_not_live(both):
    put(both, message(row(1, kind="sample", body=b"1")))
    put(both, message(row(1, kind="sample", body=b"2", time_ns=NOW + 1)))
    assert both.read(select(latest.c.body)) == [("1",)]


def test_a_clock_that_runs_ahead_does_not_stay_live_for_ever(both):
    put(both, message(row(1, kind="sample", body=b"1", time_ns=NOW * 2)), now_ns=NOW)
    put(both, message(row(2, kind="sample", body=b"2", time_ns=NOW + 5)), now_ns=NOW + 5)
    assert both.read(select(latest.c.body)) == [("2",)]


def test_hours_with_samples_are_to_be_rolled_up(both):
    put(both, message(row(1, kind="sample"), row(2, kind="sample", time_ns=NOW + HOUR), row(3, time_ns=NOW + 9 * HOUR)))
    put(both, message(row(1, kind="sample")))
    start_s = NOW // HOUR * HOUR_S
    assert both.read(select(dirty).order_by("start_s")) == [("pi", HOUR_S, start_s), ("pi", HOUR_S, start_s + HOUR_S)]


def test_a_fix_corrects_what_is_stored_what_comes_with_it_and_what_comes_later(both):
    put(
        both,
        message(row(1, sure=False, time_ns=5), row(2)),
        message(row(1, sure=False, time_ns=5), boot="outbox.other"),
    )
    assert times(both)[1][2] == UNSURE
    put(both, message(row(3, sure=False, time_ns=6), fix(4, NOW, 4)))
    put(both, message(row(5, sure=False, time_ns=7), row(6, sure=False, uptime_ns=None, time_ns=8)))
    expected = {3: (NOW + 3, 6, CORRECTED), 5: (NOW + 5, 7, CORRECTED), 6: (8, 8, UNSURE), 2: (NOW, NOW, SURE)}
    assert {n: found for n, found in times(both).items() if n in expected} == expected
    first = both.read(select(records.c.time_ns).where(records.c.sequence == 1).order_by(records.c.time_ns))
    assert first == [(5,), (NOW + 1,)]


def test_the_latest_fix_wins_in_whatever_order_they_come(both):
    put(both, message(row(1, sure=False, time_ns=5), fix(2, 2 * SECOND, 20)))
    put(both, message(fix(3, SECOND, 10)))
    assert times(both)[1][0] == 2 * SECOND + 1
    put(both, message(fix(4, 3 * SECOND, 30), fix(5, 100, 5)))
    assert times(both)[1][0] == 3 * SECOND + 1
    assert both.read(select(clocks.c.offset_ns, clocks.c.uptime_ns)) == [(3 * SECOND, 30)]


def test_a_fix_of_another_device_corrects_nothing(both):
    put(both, message(row(1, sure=False, time_ns=5)))
    put(both, message(fix(1, NOW, 5), device="nano"))
    assert times(both)[1] in {(5, 5, UNSURE), (NOW, NOW, SURE)}
    assert sorted(r.clock for r in both.read(select(records))) == [SURE, UNSURE]


def test_a_fix_beyond_all_numbers_corrects_nothing_and_breaks_nothing(both):
    most = (1 << 63) - 1
    put(both, message(row(1, sure=False, time_ns=5), row(2, sure=False, time_ns=5, uptime_ns=most)))
    put(both, message(fix(3, most, 5), row(4, sure=False, time_ns=5, uptime_ns=most)))
    assert {n: clock for n, (_, _, clock) in times(both).items()} == {1: UNSURE, 2: UNSURE, 3: SURE, 4: UNSURE}


def test_a_corrected_record_sent_again_is_a_duplicate(both):
    put(both, message(row(1, sure=False, time_ns=5), fix(2, NOW, 4)))
    assert put(both, message(row(1, sure=False, time_ns=5))) == (0, 1, 0)


def status(birth: int, *, online: bool, boot: str = BOOT, device: str = "pi", **more) -> Status:
    return Status(device=device, online=online, birth=birth, boot=boot, **more)


@pytest.mark.parametrize(
    ("came", "kept"),
    [
        ([(5, True), (6, True), (5, False)], (6, True)),  # the will of the connection before, late
        ([(6, False), (6, True)], (6, False)),  # its end was heard before its beginning
        ([(6, True), (5, True)], (6, True)),
        ([(5, True), (5, False), (6, True)], (6, True)),
        ([(0, True), (0, False)], (0, False)),  # agents that do not tell
        ([(0, False), (0, True)], (0, True)),
        ([(5, True), (0, False)], (5, True)),
        ([(5, True), (0, True)], (0, True)),  # an earlier ferryman was installed again
        ([(0, True), (5, False)], (5, False)),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_late_news_of_an_earlier_birth_is_no_news(both, came, kept, together):
    statuses = [status(birth, online=online) for birth, online in came]
    for some in [statuses] if together else [[one] for one in statuses]:
        both.insert(Batch(statuses=some), NOW)
    assert both.read(select(devices.c.birth, devices.c.online)) == [kept]


TOLD = {
    "ferryman": "0.2.0",
    "package_sha256": "ab" * 32,
    "package_name": "digits",
    "release": "r1",
    "answers": "int8 on tflite",
    "interpreters": {"tflite": "2.1"},
    "standing": {"governor": "ondemand"},
    "labels": {"site": "lab"},
    "model": "Pi 4",
    "outbox_pending": 3,
    "outbox_dropped": 1,
    "mode": "metered",
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("births", [(5, 5), (5, 6), (0, 0), (5, 5, 6, 7)])
def test_a_death_does_not_take_away_what_was_last_known(both, births, together):
    first, *others = births
    statuses = [status(first, online=True, **TOLD), *(status(n, online=False, challenge="new") for n in others)]
    for some in [statuses] if together else [[one] for one in statuses]:
        both.insert(Batch(statuses=some), NOW)
    assert kept_status(both) == status(births[-1], online=False, challenge="new", **TOLD)


def test_what_a_death_or_a_birth_tells_itself_holds(both):
    both.insert(Batch(statuses=[status(5, online=True, **TOLD)]), NOW)
    both.insert(Batch(statuses=[status(5, online=False, package_sha256="cd" * 32, mode="offline")]), NOW)
    kept = kept_status(both)
    assert (kept.package_name, kept.release, kept.answers, kept.mode) == (None, None, None, "offline")
    assert kept.labels == {"site": "lab"}
    both.insert(Batch(statuses=[status(6, online=True)]), NOW)
    assert kept_status(both) == status(6, online=True)


def test_who_went_on_purpose_and_was_back_since_is_not_away_on_purpose(both):
    both.insert(Batch(statuses=[status(5, online=True, mode="full"), status(5, online=False, mode="offline")]), NOW)
    both.insert(Batch(statuses=[status(6, online=False)]), NOW)
    assert kept_status(both).mode == ""


def kept_status(store) -> Status:
    return decode(store.read(select(devices.c.status))[0][0].encode(), Status)


def test_a_new_outbox_counts_its_births_anew(both):
    both.insert(Batch(statuses=[status(500, online=True)]), NOW)
    both.insert(Batch(statuses=[status(1, online=True, boot="new.kernel")]), NOW)
    both.insert(Batch(statuses=[status(500, online=False)]), NOW)
    assert both.read(select(devices.c.birth, devices.c.online)) == [(1, True)]


def seen(both) -> list[tuple[int, ...]]:
    return [tuple(row) for row in both.read(select(devices.c.birth, devices.c.online, devices.c.seen_ns - NOW))]


def test_what_the_broker_tells_again_is_no_sign_of_life(both):
    both.insert(Batch(statuses=[status(5, online=True)]), NOW)
    both.insert(Batch(retained=[status(5, online=True)]), NOW + 600)
    assert seen(both) == [(5, True, 0)]
    both.insert(Batch(retained=[status(6, online=True)]), NOW + 700)  # it is news: nobody heard it
    assert seen(both) == [(6, True, 700)]
    both.insert(Batch(statuses=[status(6, online=True)]), NOW + 800)
    assert seen(both) == [(6, True, 800)]
    both.insert(Batch(statuses=[status(6, online=False)], retained=[status(6, online=True)]), NOW + 900)
    assert seen(both) == [(6, False, 900)]
    both.insert(Batch(retained=[status(6, online=False)]), NOW + 1000)
    assert seen(both) == [(6, False, 900)]


def test_an_end_that_the_broker_kept_of_an_outbox_nobody_heard_of_counts(both):
    both.insert(Batch(statuses=[status(500, online=True)]), NOW)
    both.insert(Batch(retained=[status(1, online=False, boot="new.kernel")]), NOW)
    assert both.read(select(devices.c.birth, devices.c.online)) == [(1, False)]


def test_an_agent_whose_outbox_cannot_be_opened_counts_anew_with_each_start(both):
    for birth, online in [(1, True), (2, True), (2, False), (1, True)]:
        both.insert(Batch(statuses=[status(birth, online=online, boot=".kernel")]), NOW)
    assert both.read(select(devices.c.birth, devices.c.online)) == [(1, True)]


def test_the_time_of_change_is_of_online_alone(both):
    for second, (birth, online) in enumerate([(1, True), (1, True), (1, False), (1, False), (2, True)]):
        both.insert(Batch(statuses=[status(birth, online=online, outbox_pending=second)]), NOW + second)
        found = both.read(select(devices.c.changed_ns - NOW, devices.c.seen_ns - NOW))
        assert found == [([0, 0, 2, 2, 4][second], second)]


def test_whatever_comes_of_a_device_says_that_it_was_seen(both):
    both.insert(Batch(statuses=[status(1, online=True, device=name) for name in ("pi", "nano")]), NOW)
    put(both, message(row(1)), now_ns=NOW + 60 * 10**9)
    put(both, message(row(1), device="unknown"), now_ns=NOW + 60 * 10**9)
    query = select(devices.c.device, devices.c.seen_ns - NOW).order_by("device")
    assert both.read(query) == [("nano", 0), ("pi", 60 * 10**9)]


def test_nothing_is_nothing(both):
    assert both.insert(Batch(), NOW) == (0, 0, 0)
    assert both.insert(Batch([message(row(1))._replace(rows=())]), NOW) == (0, 0, 0)

from __future__ import annotations

import re

import msgspec
import pytest

from ferryman.profiler.comparing import (
    SLOWER,
    UNCLEAR,
    describe,
    exit_code,
    pair_up,
    set_beside,
    verdict_in_words,
    without_partner,
)
from ferryman.runtime.contracts.comparison import Comparison
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import decode, encode
from tests.support.measurements import full_measurement, measurement, start


def of(level_ns: int, spread: float = 0.001, count: int = 8, **changes):
    scattered = [round(level_ns * (1 + spread * (number * 3 % count - (count - 1) / 2))) for number in range(count)]
    starts = tuple(start([one] * 9, load_ns=10**6) for one in scattered)
    return msgspec.structs.replace(measurement(), starts=starts, **changes)


def beside(times: float, spread: float = 0.001, count: int = 8, **options):
    other = of(round(10**6 * times), spread, count, package_sha256="11")
    return set_beside(of(10**6, count=count), other, interleaved=True, **options)


def test_a_slower_package_is_told_with_its_margin_and_its_cause():
    found = beside(1.1)
    assert found.verdict == "slower"
    assert verdict_in_words(found) == "slower, by 10.0 % to 10.0 % (margin 2 %, 8 rounds)"
    assert [cause.name for cause in found.causes] == ["artifact"]
    assert [difference.name for difference in found.differences] == ["package"]


def test_a_faster_one_is_explained_by_what_the_baseline_had_against_it():
    busy = of(10**6)
    busy = msgspec.structs.replace(busy, starts=tuple(msgspec.structs.replace(one, busy=0.5) for one in busy.starts))
    quiet = of(800_000)
    quiet = msgspec.structs.replace(quiet, starts=tuple(msgspec.structs.replace(one, busy=0.0) for one in quiet.starts))
    found = set_beside(busy, quiet)
    assert verdict_in_words(found).startswith("faster, by 19.8 % to 20.2 %")
    assert [cause.name for cause in found.causes] == ["busy"]


def test_others_that_fill_what_a_slow_one_leaves_are_no_cause_where_both_took_turns():
    """A session that waits leaves more of a busy device to others: that is an effect of its slowness."""
    one, two = of(10**6), of(2 * 10**6, package_sha256="11")
    pair = [
        msgspec.structs.replace(m, starts=tuple(msgspec.structs.replace(start, busy=busy) for start in m.starts))
        for m, busy in ((one, 0.5), (two, 0.9))
    ]
    assert [cause.name for cause in set_beside(*pair, interleaved=True).causes] == ["artifact"]
    assert [cause.name for cause in set_beside(*pair).causes] == ["busy"]


def test_what_is_the_same_needs_no_cause():
    found = beside(1.01)
    assert (found.verdict, found.causes) == ("same", ())
    assert verdict_in_words(found).startswith("same, +1.0 % to +1.0 %")


def test_what_is_unclear_says_what_would_settle_it():
    assert re.search(r"; about 1\d would settle it$", verdict_in_words(beside(1.0, 0.011)))
    assert "more rounds would not settle it" in verdict_in_words(beside(1.02, 0.02, 13))


@pytest.mark.parametrize("count", [7, 8, 11])
def test_a_few_rounds_do_not_claim_that_more_would_not_settle_it(count):
    found = beside(1.02, 0.02, count)
    assert (found.verdict, found.ratios[0].rounds) == ("unclear", None)
    assert verdict_in_words(found).endswith("; too few rounds to tell how many would settle it: take 12 or more")


def test_a_few_scattered_processes_are_called_too_few_and_not_a_ratio_of_thousands():
    wild = set_beside(of(10**6, count=2), of(3 * 10**6, 1.0, count=2))
    p50 = wild.ratios[0]
    assert (p50.low, p50.high, p50.verdict) == (None, None, "unclear")
    assert "too few processes" in next(line for line in describe(wild).splitlines() if line.startswith("p50"))
    assert verdict_in_words(wild).endswith("not in turn); too few processes: 6 of each or more have a 95 % interval")
    assert exit_code([wild]) == UNCLEAR


def test_a_wide_interval_of_a_few_processes_that_settles_it_is_told():
    found = set_beside(of(10**6, count=3), of(10**9, 0.5, count=3), margin=0.5)
    assert (found.verdict, found.ratios[0].low is None) == ("slower", False)


def test_single_processes_are_too_few():
    found = set_beside(of(10**6, count=1), of(10**6, count=1))
    assert "too few processes" in describe(found)
    assert "would settle" not in describe(found)


def test_what_is_unclear_says_what_disturbed_it():
    busy = of(10**6, 0.02)
    busy = msgspec.structs.replace(busy, starts=tuple(msgspec.structs.replace(one, busy=0.5) for one in busy.starts))
    found = set_beside(of(10**6), busy, interleaved=True)
    assert [cause.words for cause in found.causes if cause.name == "busy"] == [
        "other: beside 8 of 8 processes others took 50% to 50% of the processors"
    ]


def test_records_that_took_no_turns_say_so():
    found = set_beside(of(10**6), of(10**6, count=5))
    assert "8 and 5 processes, not in turn" in verdict_in_words(found)


def test_other_threads_bar_a_comparison_unless_it_is_asked_for_anyway():
    four = of(10**6, spec=msgspec.structs.replace(measurement().spec, threads=4))
    with pytest.raises(CallerError, match=r"cannot be compared \(threads: 1 against 4\)"):
        set_beside(of(10**6), four, interleaved=True)
    found = set_beside(of(10**6), four, interleaved=True, anyway=True)
    assert found.verdict == "same"
    assert "differs: threads: 1 against 4" in describe(found)


@pytest.mark.parametrize(
    ("baseline", "other", "pairs"),
    [
        ([("a", "x"), ("b", "x")], [("b", "x"), ("c", "x")], [(1, 0)]),
        ([("a", "x"), ("a", "y")], [("a", "y"), ("a", "x")], [(0, 1), (1, 0)]),
        ([("a", "x"), ("b", "y")], [("c", "x")], [(0, 0)]),
    ],
)
def test_what_goes_together(baseline, other, pairs):
    assert pair_up(baseline, other) == pairs


def test_where_nothing_goes_together_both_are_listed():
    with pytest.raises(CallerError, match=r"a on x, b on x; and c on x"):
        pair_up([("a", "x"), ("b", "x")], [("c", "x")])


def test_what_has_no_partner_is_named():
    one, two = [("a", "x"), ("b", "x")], [("b", "x"), ("c", "x\x1b[2J")]
    assert without_partner(one, two, pair_up(one, two), "the other") == [
        "a on x of the baseline: it has no partner in the other",
        "c on x\ufffd[2J of the other: it has no partner in the baseline",
    ]
    assert without_partner(one, one, pair_up(one, one), "the other") == []


def test_the_worst_verdict_is_the_exit_code():
    same, slower, unclear, faster = beside(1.0), beside(1.1), beside(1.02, 0.02), beside(0.9)
    assert exit_code([same, faster]) == 0
    assert exit_code([same, slower, unclear]) == SLOWER
    assert exit_code([same, unclear]) == UNCLEAR


def test_a_comparison_travels_whole():
    found = set_beside(full_measurement(), full_measurement(factor=1.2, seed=1))
    assert decode(encode(found), Comparison) == found


def test_words_of_records_cannot_steer_the_terminal():
    hostile = of(10**6, package_name="\x1b[2Jgone\r\n\u202e", variant="\x1b]0;")
    words = describe(set_beside(hostile, of(10**6), interleaved=True))
    assert "\x1b" not in words
    assert "\r" not in words
    plain = describe(set_beside(of(10**6, package_name="b", variant="c"), of(10**6), interleaved=True))
    assert len(words.splitlines()) == len(plain.splitlines())


def test_everything_in_two_full_records_is_held_against_each_other():
    found = set_beside(full_measurement(), full_measurement(factor=1.2, seed=1))
    assert [ratio.metric for ratio in found.ratios] == ["p50", "p90", "load", "first run", "memory", "energy"]
    assert describe(found).startswith("digits 9f86d081884c fp32-tflite on ai-edge-litert over digits")

"""Costs of a made-up device, learned from what networks take on it."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from ferryman.profiler.predict.fit import NETWORKS_LEAST, fit
from ferryman.profiler.predict.predictor import features, load, rank_correlation
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.operators import Operator, Operators
from ferryman.runtime.contracts.record import Unavailable, encode
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.work import Work
from tests.support.fleet import LITERT, conditions, measured, start
from tests.support.packages import write_tiny_package

TILE = 8
TRUE = {"conv2d": (0.02, 0.3, 0.05, 400.0), "add": (0.0, 0.0, 0.1, 200.0)}
RUN_NS = 3000.0


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Measurement:
    spec = ProfileSpec(variants=("fp32-tflite",), interpreters=(LITERT,))
    return measured(write_tiny_package(tmp_path_factory.mktemp("p") / "p.ferry"), spec, 2.0)


def network(random: np.random.Generator) -> tuple[Work, ...]:
    made = []
    for _ in range(random.integers(2, 9)):
        channels, inside, positions = (int(random.integers(low, high)) for low, high in ((4, 60), (4, 60), (16, 400)))
        macs = positions * 9 * inside * channels
        moved = 4 * (positions * (inside + channels) + 9 * inside * channels)
        made.append(Work(kind="conv2d", macs=macs, bytes_moved=moved, channels=channels, loops=9 * positions))
        if random.random() < 0.5:
            made.append(Work(kind="add", macs=0, bytes_moved=12 * positions * channels))
    return tuple(made)


def truth_ns(work: tuple[Work, ...]) -> float:
    return RUN_NS + sum(float(np.dot(features(one, TILE), TRUE[one.kind])) for one in work)


def took(base: Measurement, latency_ns: float, number: int = 0) -> Measurement:
    runs = [round(latency_ns)] * 3
    return replace(base, package_sha256=f"{number:064x}", starts=(start(*runs), start(*runs)))


def examples(base: Measurement, count: int, noise: float = 0.0, seed: int = 1):
    random = np.random.default_rng(seed)
    works = [network(random) for _ in range(count)]
    return [
        (took(base, truth_ns(work) * (1 + noise * random.normal()), number), work) for number, work in enumerate(works)
    ]


def test_what_a_device_takes_is_found_again(base):
    predictor = fit(examples(base, 40))
    assert predictor.tile == TILE
    assert predictor.error < 0.01
    assert predictor.within(0.1) == 1
    assert predictor.rank_correlation > 0.999
    work = network(np.random.default_rng(2))
    assert predictor.predict(work).latency_ns == pytest.approx(truth_ns(work), rel=0.02)
    costs = {cost.kind: cost for cost in predictor.costs}
    assert costs["conv2d"].ns_per_mac == pytest.approx(0.02, rel=0.05)


def test_the_stated_error_is_the_error_on_networks_nobody_saw(base):
    predictor = fit(examples(base, 60, noise=0.08))
    seen_anew = [network(np.random.default_rng(seed)) for seed in range(1000, 1400)]
    random = np.random.default_rng(5)
    inside = total = 0
    for work in seen_anew:
        try:
            prediction = predictor.predict(work)
        except CallerError:
            continue
        total += 1
        true_ns = truth_ns(work) * (1 + 0.08 * random.normal())
        inside += abs(prediction.latency_ns / true_ns - 1) <= prediction.error
    assert total > 300
    assert 0.8 < inside / total < 0.97


def test_a_network_measured_badly_counts_less(base):
    good = examples(base, 20)
    work = good[0][1]
    wrong = replace(base, starts=(start(*[round(2 * truth_ns(work))] * 3), start(*[round(4 * truth_ns(work))] * 3)))
    sure = replace(base, starts=(start(*[round(3 * truth_ns(work))] * 3),) * 2)
    errors = []
    for bad in (wrong, sure):
        predictor = fit([(bad, work), *good[1:]])
        errors.append(np.median([abs(one.error) for one in predictor.held_out[1:]]))
    assert errors[0] < errors[1]


def test_the_same_network_twice_is_one(base):
    some = examples(base, NETWORKS_LEAST)
    assert len(fit([*some, *some]).held_out) == NETWORKS_LEAST
    with pytest.raises(CallerError, match="7 different networks are too few"):
        fit([*some[:-1], some[0]])


def test_measured_operators_teach_too(base):
    random = np.random.default_rng(3)
    some = []
    for number in range(10):
        work = network(random)
        rows = tuple(
            Operator(
                name=one.kind,
                kind=one.kind,
                module=None,
                delegate=None,
                samples=Samples.of([round(0.02 * one.macs + 0.1 * one.bytes_moved + 500)] * 3),
                share=1 / len(work),
                bytes_moved=one.bytes_moved,
                macs=one.macs,
            )
            for one in work
        )
        whole = RUN_NS + sum(row.samples[0] for row in rows)
        operators = Operators(source="made up", rows=rows, whole=Samples.of([1]), peak=Unavailable(reason="no"))
        some.append(replace(took(base, whole, number), operators=operators))
    predictor = fit(some)
    assert predictor.error < 0.01
    assert predictor.predict(some[0].operators.rows).latency_ns == pytest.approx(some[0].starts[0].samples[0], rel=0.01)


def test_without_work_or_operators_it_says_what_to_give(base):
    with pytest.raises(CallerError, match=r"its operators were not measured; give \(measurement, work\)"):
        fit([base])


def test_nothing_is_too_little():
    with pytest.raises(CallerError, match="no measurements"):
        fit([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: replace(one, interpreter="executorch"), "several interpreters .* executorch"),
        (lambda one: replace(one, form="int8"), "several forms"),
        (lambda one: replace(one, spec=replace(one.spec, threads=2)), "several thread counts"),
        (lambda one: replace(one, before=conditions(governor="powersave")), "several devices .* governor powersave"),
    ],
)
def test_what_is_not_alike_is_not_fitted_together(base, change, message):
    some = examples(base, NETWORKS_LEAST)
    (measurement, work), *rest = some
    with pytest.raises(CallerError, match=message):
        fit([(change(measurement), work), *rest])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ((Work(kind="gelu", macs=0, bytes_moved=1),), "gelu was not measured, only add, conv2d"),
        ((Work(kind="conv2d", macs=10**9, bytes_moved=1),), r"conv2d of 1,000,000,000 multiply-adds, and the largest"),
        ((Work(kind="add", macs=0, bytes_moved=10**9),), "add of 1,000,000,000 bytes"),
        ((), r"it would take .* ms, and those measured took"),
    ],
)
def test_beyond_what_was_measured_nothing_is_said(base, work, message):
    with pytest.raises(CallerError, match=message):
        fit(examples(base, 12)).predict(work)


def test_it_is_saved_and_read_again(base, tmp_path):
    predictor = fit(examples(base, 12))
    path = tmp_path / "pi.json"
    predictor.save(path)
    assert load(path) == predictor
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff"])
def test_what_is_no_predictor_is_not_read(tmp_path, data):
    path = tmp_path / "p.json"
    path.write_bytes(data)
    with pytest.raises(CallerError, match="is no predictor"):
        load(path)


def test_another_version_is_not_read(base, tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(encode(replace(fit(examples(base, 12)), schema=99)))
    with pytest.raises(CallerError, match="schema 99, this ferryman reads 1"):
        load(path)


def test_a_line_tells_of_what_and_how_well(base):
    text = fit(examples(base, 12)).describe()
    assert text.startswith(f"fp32 on {LITERT} 2.3.0, 1 threads, from 12 networks of ")
    assert "100% within 10 %" in text


def test_ranks():
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0

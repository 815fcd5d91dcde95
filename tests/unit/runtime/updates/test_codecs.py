"""What every codec of updates must do, and what each promises."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.updates.base import loss_of, shapes_of
from ferryman.runtime.updates.dgc import Dgc
from ferryman.runtime.updates.fedzip import FedZip
from ferryman.runtime.updates.feedback import ErrorFeedback
from ferryman.runtime.updates.parse import finer_than, parse_codec
from ferryman.runtime.updates.unbiased import RandomK, StochasticQuantizer

CODECS = {
    "fedzip": FedZip(0.1, 7),
    "fedzip, all of it": FedZip(1.0, 255),
    "dgc": Dgc(0.05),
    "random-k": RandomK(0.1, seed=1),
    "stochastic": StochasticQuantizer(3, seed=1),
    "with feedback": ErrorFeedback(FedZip(0.1, 7)),
}


def update(seed=0, size=2000):
    random = np.random.default_rng(seed)
    return {
        "layer.weight": (random.standard_t(3, (size // 10, 10)) * 0.01).astype(np.float32),
        "layer.bias": (random.standard_normal(10) * 0.01).astype(np.float32),
        "scale": np.float32(random.standard_normal()).reshape(()),
        "unchanged": np.zeros((3, 4), np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.fixture(params=CODECS, ids=list(CODECS))
def codec(request):
    return CODECS[request.param]


def test_an_update_comes_back_in_its_shapes(codec):
    given_update = update()
    data = codec.encode(given_update, {})
    decoded = codec.decode(data, shapes_of(given_update))
    assert shapes_of(decoded) == shapes_of(given_update)
    assert all(one.dtype == np.float32 for one in decoded.values())
    assert not decoded["unchanged"].any()
    stated = loss_of(data, given_update, decoded)
    assert stated.bytes == len(data)
    assert stated.ratio == pytest.approx(4 * 2023 / len(data))


def test_an_update_of_zeros_comes_back(codec):
    zero = {name: np.zeros_like(one) for name, one in update().items()}
    decoded = codec.decode(codec.encode(zero, {}), shapes_of(zero))
    assert not any(one.any() for one in decoded.values())


def test_an_update_without_tensors_comes_back(codec):
    assert codec.decode(codec.encode({"none": np.zeros(0, np.float32)}, {}), {"none": (0,)})["none"].size == 0


@pytest.mark.parametrize("wrong", [np.float64([1.0]), np.float32([np.nan]), np.float32([np.inf])])
def test_what_is_no_finite_float32_is_refused(codec, wrong):
    with pytest.raises(CallerError, match="layer"):
        codec.encode({"layer": wrong}, {})


def test_an_update_of_another_model_is_refused(codec):
    data = codec.encode(update(), {})
    for shapes in ({"layer": (3,)}, {**shapes_of(update()), "layer.bias": (11,)}):
        with pytest.raises(PackageError, match="found another"):
            codec.decode(data, shapes)


def test_every_truncation_is_refused(codec):
    data = codec.encode(update(size=200), {})
    for end in (*range(50), *range(50, len(data), 7)):
        with pytest.raises(PackageError):
            codec.decode(data[:end], shapes_of(update(size=200)))
    with pytest.raises(PackageError):
        codec.decode(data + b"\0", shapes_of(update(size=200)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_foreign_bytes_are_refused_or_read_in_time(data):
    codec = CODECS[data.draw(st.sampled_from(sorted(CODECS)))]
    shapes = shapes_of(update())
    good = codec.encode(update(), {})
    foreign = bytearray(good[:4] + data.draw(st.binary(max_size=300)))
    if data.draw(st.booleans()):
        foreign = bytearray(good)
        for _ in range(data.draw(st.integers(1, 5))):
            foreign[data.draw(st.integers(4, len(good) - 1))] = data.draw(st.integers(0, 255))
    start = time.process_time()
    try:
        decoded = codec.decode(bytes(foreign), shapes)
    except PackageError:
        decoded = None
    assert time.process_time() - start < 5
    if decoded is not None:
        assert {name: one.shape for name, one in decoded.items()} == shapes
        assert all(np.isfinite(one).all() for one in decoded.values())


# FedZip


def test_fedzip_sends_the_largest_of_each_tensor():
    codec = FedZip(0.1, 255)
    decoded = codec.decode(codec.encode(update(), {}), shapes_of(update()))["layer.weight"].ravel()
    whole = update()["layer.weight"].ravel()
    assert np.count_nonzero(decoded) == 200
    assert set(np.flatnonzero(decoded)) == set(np.argsort(-np.abs(whole))[:200])


def test_more_clusters_lie_closer():
    given_update = update()
    errors = []
    for clusters in (1, 3, 15, 255):
        codec = FedZip(1.0, clusters)
        data = codec.encode(given_update, {})
        errors.append(loss_of(data, given_update, codec.decode(data, shapes_of(given_update))).relative_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


def test_clusters_are_better_than_equal_steps():
    values = update(size=20_000)["layer.weight"]
    codec = FedZip(1.0, 15)
    decoded = codec.decode(codec.encode({"x": values}, {}), {"x": values.shape})["x"]
    step = 2 * np.abs(values).max() / 14
    assert np.linalg.norm(decoded - values) < np.linalg.norm(np.round(values / step) * step - values)


def test_fedzip_at_one_percent_takes_an_update_to_a_two_hundredth():
    given_update = {"w": np.random.default_rng(3).standard_normal(1_000_000).astype(np.float32)}
    assert loss_of(FedZip(0.01, 15).encode(given_update, {}), given_update, given_update).ratio > 250


# Error feedback


def owed_after(codec, rounds):
    """How far what was received is from what was sent, in all, against one update."""
    state, missing = {}, []
    sent = received = np.zeros((200, 10), np.float32)
    for at in range(rounds):
        one = {"w": update(at)["layer.weight"]}
        received = received + codec.decode(codec.encode(one, state), shapes_of(one))["w"]
        sent = sent + one["w"]
        missing.append(float(np.linalg.norm(sent - received)) / float(np.linalg.norm(one["w"])))
    return missing


def test_the_error_stays_bounded_with_feedback_and_grows_without():
    with_it, without = owed_after(ErrorFeedback(FedZip(0.1, 7)), 120), owed_after(FedZip(0.1, 7), 120)
    assert max(with_it[80:]) < 1.1 * max(with_it[30:80])
    assert without[-1] > 2 * without[20]
    assert without[-1] > 2 * with_it[-1]


def test_what_feedback_owes_is_what_is_missing():
    state = {}
    codec = ErrorFeedback(FedZip(0.1, 7))
    one = {"w": update()["layer.weight"]}
    decoded = codec.decode(codec.encode(one, state), shapes_of(one))
    assert np.array_equal(state["owed w"], one["w"] - decoded["w"])


# DGC


def test_dgc_keeps_what_it_does_not_send():
    """Without momentum and clipping, what was sent and what is kept add up to all that came."""
    codec, state = Dgc(0.01, momentum=0), {}
    total = received = np.zeros((200, 10), np.float32)
    for at in range(50):
        one = {"w": update(at)["layer.weight"]}
        total = total + one["w"]
        received = received + codec.decode(codec.encode(one, state), shapes_of(one))["w"]
    assert np.allclose(received + state["residual w"].reshape(200, 10), total, atol=1e-5)


def test_dgcs_momentum_is_that_of_the_optimizer():
    """Sending all at once, it is momentum as SGD has it: velocity = m velocity + gradient."""
    codec, state = Dgc(1.0, momentum=0.9), {}
    one = {"w": np.float32([1, -2, 3])}
    first = codec.decode(codec.encode(one, state), shapes_of(one))["w"]
    assert np.array_equal(first, one["w"])
    assert not state["velocity w"].any()  # factor masking: what was sent leaves the velocity as well


def test_dgcs_late_entries_move_as_far_as_they_would_have_in_time():
    codec, state = Dgc(0.25, momentum=0.5), {}
    gradient = {"w": np.float32([8, 1, 1, 1])}
    sent = [codec.decode(codec.encode(gradient, state), {"w": (4,)})["w"] for _ in range(3)]
    assert [one[0] for one in sent] == [8, 8, 8]
    velocities = 1 + 1.5 + 1.75
    assert state["residual w"][1] == pytest.approx(velocities)


def test_dgc_warms_up():
    codec = Dgc(0.001, warm_up=4)
    shares = [codec.share(at) for at in range(6)]
    assert shares[0] == 0.25
    assert shares == sorted(shares, reverse=True)
    assert shares[4] == shares[5] == 0.001
    state, sent = {}, []
    for at in range(5):
        one = {"w": update(at, 20_000)["layer.weight"]}
        sent.append(np.count_nonzero(codec.decode(codec.encode(one, state), shapes_of(one))["w"]))
    assert sent[0] == 5000
    assert sent[-1] == 20


def test_dgc_clips_a_gradient_before_it_is_kept():
    codec = Dgc(1.0, momentum=0, clip=1.0)
    sent = codec.decode(codec.encode({"w": np.float32([30, 40])}, {}), {"w": (2,)})["w"]
    assert sent == pytest.approx([0.6, 0.8])


def test_dgc_of_a_large_gradient_is_in_the_papers_range():
    gradient = {"w": np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)}
    ratio = loss_of(Dgc(0.001).encode(gradient, {}), gradient, gradient).ratio
    assert 600 < ratio < 800


# Unbiased


@pytest.mark.parametrize(
    "codec", [RandomK(0.2, seed=5), StochasticQuantizer(1, seed=5), StochasticQuantizer(4, seed=5)]
)
def test_the_mean_of_many_is_the_update(codec):
    one = {"w": np.float32([0.5, -0.3, 0.01, 0, 2, -1, 0.7, 1.5, -2, 0.1])}
    state, rounds = {}, 4000
    decoded = np.array([codec.decode(codec.encode(one, state), {"w": (10,)})["w"] for _ in range(rounds)], np.float64)
    deviation = decoded.std(0) / np.sqrt(rounds)
    assert (np.abs(decoded.mean(0) - one["w"]) <= 4.5 * deviation + 1e-6).all()
    assert not np.array_equal(decoded[0], decoded[1])


def test_random_ks_error_is_what_it_says():
    one = {"w": np.random.default_rng(0).standard_normal(2000).astype(np.float32)}
    state, codec = {}, RandomK(0.1, seed=2)
    errors = [
        np.square(codec.decode(codec.encode(one, state), {"w": (2000,)})["w"] - one["w"]).sum() for _ in range(200)
    ]
    assert np.mean(errors) == pytest.approx(9 * np.square(one["w"]).sum(), rel=0.1)


def test_random_k_sends_no_positions():
    one = {"w": np.ones(10_000, np.float32)}
    assert len(RandomK(0.05).encode(one, {})) == 4 + 8 + 2 + 4 * 500


def test_a_quantizers_error_is_within_a_level():
    one = update()
    codec = StochasticQuantizer(8, seed=3)
    decoded = codec.decode(codec.encode(one, {}), shapes_of(one))
    for name, values in one.items():
        largest = np.abs(values).max(initial=0)
        assert np.abs(decoded[name] - values).max(initial=0) <= 1.0001 * largest / 8


def test_devices_draw_differently():
    one = {"w": np.ones(100, np.float32)}
    assert RandomK(0.1).encode(one, {}) != RandomK(0.1).encode(one, {})


# Names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fedzip", FedZip()),
        ("fedzip-z1", FedZip(0.01)),
        ("fedzip-z0.5-k7", FedZip(0.005, 7)),
        ("dgc", Dgc(momentum=0)),
        ("dgc-z0.2", Dgc(0.002, momentum=0)),
    ],
)
def test_codecs_go_by_names(text, found):
    assert parse_codec(text) == found
    assert parse_codec(found.name) == found


@pytest.mark.parametrize("text", ["", "gzip", "fedzip-z", "fedzip-z0", "fedzip-z101", "dgc-k3", "fedzip-k0", "x" * 500])
def test_unknown_names_are_refused(text):
    with pytest.raises(CallerError):
        parse_codec(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedZip(0),
        lambda: FedZip(clusters=257),
        lambda: Dgc(kept=2),
        lambda: Dgc(momentum=1),
        lambda: RandomK(0),
        lambda: StochasticQuantizer(0),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(CallerError):
        make()


@pytest.mark.parametrize(
    ("text", "finer"),
    [
        ("fedzip-z8-k3", ("fedzip-z16-k3", "fedzip-z8-k7")),
        ("fedzip-z70-k200", ("fedzip-z100-k200", "fedzip-z70-k256")),
        ("fedzip-z100-k256", ()),
        ("dgc-z0.1", ("dgc-z0.2",)),
        ("dgc-z100", ()),
    ],
)
def test_what_loses_less_than_a_codec_is_named(text, finer):
    assert finer_than(parse_codec(text)) == finer
    for one in finer:
        assert parse_codec(one).name == one

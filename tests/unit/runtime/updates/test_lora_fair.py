"""Factors of many devices become one pair."""

import numpy as np
import pytest

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.updates.lora_fair import aggregate_lora


def devices(count, rank=4, seed=0):
    random = np.random.default_rng(seed)
    start = random.standard_normal((rank, 20))
    return [
        (
            (start + random.standard_normal((rank, 20)) * 0.5).astype(np.float32),
            random.standard_normal((12, rank)).astype(np.float32),
        )
        for _ in range(count)
    ]


def miss(pair, pairs, weights):
    """How far a pair is from what the devices add up to."""
    ideal = sum(w * up @ down for w, (down, up) in zip(np.array(weights) / sum(weights), pairs, strict=True))
    return float(np.linalg.norm(pair[1] @ pair[0] - ideal))


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [5, 1, 0, 2]])
def test_it_is_nearer_to_the_mean_update_than_the_mean_of_factors(weights):
    pairs = devices(4)
    shares = np.array(weights) / sum(weights)
    plain = tuple(sum(s * pair[side] for s, pair in zip(shares, pairs, strict=True)) for side in (0, 1))
    fair = aggregate_lora(pairs, weights)
    assert np.allclose(fair[0], plain[0], atol=1e-6)
    assert miss(fair, pairs, weights) < 0.95 * miss(plain, pairs, weights)
    best = np.linalg.lstsq(
        fair[0].T, sum(s * up @ down for s, (down, up) in zip(shares, pairs, strict=True)).T, rcond=None
    )[0].T
    assert miss(fair, pairs, weights) < 1.01 * miss((fair[0], best), pairs, weights)


def test_a_dear_correction_gives_the_mean_of_factors():
    pairs = devices(3)
    assert np.allclose(aggregate_lora(pairs, [1, 1, 1], 1e9)[1], np.mean([up for _, up in pairs], 0), atol=1e-5)


def test_one_device_gets_its_own_factors():
    ((down, up),) = devices(1)
    found = aggregate_lora([(down, up)], [3])
    assert np.allclose(found[0], down, atol=1e-6)
    assert np.allclose(found[1], up, atol=1e-5)


def test_a_first_round_of_zeros_stays_zero():
    down, up = np.zeros((2, 3), np.float32), np.zeros((4, 2), np.float32)
    assert not aggregate_lora([(down, up)], [1])[1].any()


@pytest.mark.parametrize(
    ("pairs", "weights"),
    [([], []), (devices(2), [1]), (devices(2), [0, 0]), (devices(2), [2, -1]), ([*devices(1), *devices(1, 3)], [1, 1])],
)
def test_what_cannot_be_joined_is_refused(pairs, weights):
    with pytest.raises(CallerError):
        aggregate_lora(pairs, weights)

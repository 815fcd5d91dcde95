"""The error a profile states, tried on processes that scatter, whose runs resemble their neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ferryman.profiler.stats import median_error, summarize
from tests.support.measurements import start


def profiled(noise, processes: int, runs: int = 60):
    """A profile of a network of 1 ms; processes scatter by 1 %, and one in twenty was disturbed."""
    levels = np.exp(noise.normal(0, 0.01, processes))
    levels *= np.exp(np.where(noise.random(processes) < 0.05, noise.exponential(0.1, processes), 0))
    latent = np.empty((processes, runs))
    latent[:, 0] = noise.standard_normal(processes)
    for run in range(1, runs):
        latent[:, run] = 0.9 * latent[:, run - 1] + math.sqrt(1 - 0.9**2) * noise.standard_normal(processes)
    times_ns = (1e6 * levels[:, None] * np.exp(0.03 * latent)).astype(np.int64)
    starts = [start(of_one) for of_one in times_ns]
    return summarize(one.samples for one in starts).p50_ns, median_error(starts)


@pytest.mark.parametrize("processes", [3, 5])
def test_two_profiles_agree_within_their_stated_errors(processes):
    noise = np.random.default_rng(processes)
    agree, strictly = [], []
    for _ in range(150):
        (one, error), (two, its) = profiled(noise, processes), profiled(noise, processes)
        agree.append(abs(one - two) <= error * one + its * two)
        strictly.append(abs(one - two) <= math.hypot(error * one, its * two))
    assert np.mean(agree) >= 0.95
    assert np.mean(strictly) >= 0.93


def test_the_stated_error_is_no_wider_than_it_need_be():
    noise = np.random.default_rng(0)
    assert np.median([profiled(noise, 5)[1] for _ in range(100)]) < 0.04

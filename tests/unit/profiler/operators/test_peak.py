from __future__ import annotations

import time

import numpy as np

from ferryman.profiler.operators import peak
from ferryman.profiler.operators.peak import measure_peak
from ferryman.runtime.contracts.operators import Peak
from ferryman.runtime.contracts.record import Unavailable
from tests.support.undisturbed import undisturbed


def test_the_roof_is_above_what_numpy_reaches():
    def attempt():
        found = measure_peak()
        if isinstance(found, Unavailable):  # of an instruction set that these kernels do not use
            return
        assert found.cache_gbytes_per_s > found.gbytes_per_s > 0.5
        assert 0 <= found.busy <= 1
        if not isinstance(found.int8_gmacs_per_s, Unavailable):
            assert found.int8_gmacs_per_s > found.gmacs_per_s
        a = np.ones(1 << 20, np.float32)
        best = min(_seconds(a) for _ in range(20))
        assert found.cache_gbytes_per_s > 0.7 * a.nbytes / best / 1e9

    undisturbed(attempt)


def _seconds(a):
    begin = time.perf_counter()
    a.max()
    return time.perf_counter() - begin


def test_a_processor_that_can_more_than_these_kernels_use_has_no_roof(monkeypatch):
    monkeypatch.setattr(peak.kernels, "isa", lambda: "avx2")
    monkeypatch.setattr(peak, "instruction_sets", lambda _: frozenset(("avx2", "avx512f")))
    assert isinstance(measure_peak(), Unavailable)
    monkeypatch.setattr(peak, "instruction_sets", lambda _: frozenset(("avx2", "avx_vnni")))
    found = measure_peak()
    assert isinstance(found, Peak)
    assert isinstance(found.int8_gmacs_per_s, Unavailable)
    monkeypatch.setattr(peak.kernels, "isa", lambda: "scalar")
    assert isinstance(measure_peak(), Unavailable)

"""Searches with a device in the loop, and a network that a search once found."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ferryman import Fleet
from ferryman.converter.api import convert
from ferryman.devices.fleet.oracle import Hands
from ferryman.devices.fleet.profile import profile
from tests.support.interpreters import INTERPRETERS
from tests.zoo.nasnet import NasNet, _halved_average
from tests.zoo.search import EXAMPLE, SPEC, learn, search, student
from tests.zoo.search_nets import TEACHER, Student, shrunk, without

BAR_DB = 60.0


def test_a_cell_keeps_or_halves_the_size_and_joins_what_nobody_used():
    net = NasNet(width=4).eval()
    stem = net.stem(torch.randn(1, 3, 32, 32))
    normal = net.normal(stem, stem)
    reduced = net.reduction(normal, stem)
    assert [tuple(one.shape[1:]) for one in (stem, normal, reduced)] == [(12, 32, 32), (24, 32, 32), (32, 16, 16)]
    assert tuple(net.last(reduced, normal).shape[1:]) == (48, 16, 16)


def test_an_average_at_the_border_is_of_what_is_there():
    image = torch.randn(2, 3, 8, 8)
    expected = functional.avg_pool2d(image, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(_halved_average(image), expected)


def test_a_layer_that_goes_leaves_its_stride():
    image = torch.randn(1, 1, 16, 16)
    for index in range(len(TEACHER)):
        kept = without(TEACHER, index)
        assert len(kept) == len(TEACHER) - 1
        if index < len(TEACHER) - 1:
            assert Student(kept).features(image).shape[2:] == Student(TEACHER).features(image).shape[2:]


def test_a_layer_that_shrinks_leaves_the_others():
    thin = shrunk(TEACHER, 2, 0.5)
    assert [one.width for one in thin] == [32, 32, 32, 64, 64, 128, 128]
    assert Student(thin)(torch.randn(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.slow
def test_nasnet_converts_and_equals_eager_on_all_interpreters(tmp_path):
    made = convert("tests.zoo.nasnet:nasnet", output=tmp_path)
    proofs = {proof.interpreter: proof for variant in made.manifest.variants for proof in variant.verified}
    assert set(proofs) == set(INTERPRETERS)
    assert all(proof.sqnr_db >= BAR_DB for proof in proofs.values())


@pytest.mark.slow
def test_a_search_measures_each_student_once_and_finds_one_within_its_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def counted(package, device, spec, *, progress):
        calls.append(package)
        return profile(package, device, spec, progress=progress)

    found = search(Fleet(hands=Hands(profile=counted)), "local", tell=print)
    assert len(calls) == 12
    assert found.latency_ms <= found.budget_ms
    assert found.accuracy > 0.8

    first = found.tables[0]
    students = {row.candidate: found.students[row.candidate] for row in first.rows}
    fresh = {name: student(one.layers) for name, one in students.items()}  # those that were trained are others now
    again = Fleet(hands=Hands(profile=counted)).measure(fresh, "local", first.metrics, inputs=EXAMPLE, spec=SPEC)
    assert len(calls) == 12
    assert all(row.cached for row in again.rows)
    assert [row.measurement for row in again.rows] == [row.measurement for row in first.rows]

    predictor = learn(found)
    print(predictor.describe())
    assert predictor.rank_correlation > 0.8

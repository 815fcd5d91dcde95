"""Adapters that travel alone, in real artifacts."""

from __future__ import annotations

import numpy as np
import pytest

from ferryman.devices.fleet.repository.adapted import adapter_package
from ferryman.devices.fleet.repository.weights import find_weights
from ferryman.runtime.contracts.errors import CallerError, ParityError
from ferryman.runtime.package import open_package
from ferryman.runtime.session import open_session
from ferryman.runtime.updates.adapters import read_adapters, write_adapters
from tests.unit.devices.fleet.repository.test_lossy import RUNTIMES, contents, payload, rebuilt


@pytest.mark.parametrize("answers", [False, True], ids=["own answers", "the merged model's answers"])
def test_a_device_gets_what_converting_the_merged_model_gives(packages, output, answers):
    result = packages.adapted
    if answers:
        result = adapter_package(packages.base, packages.adapters, output, answers=packages.merged)
    for runtime, path in RUNTIMES.items():
        old, new = payload(packages.base, path), payload(result.package, path)
        made, pieces = rebuilt(old, new, result.hinting(path, old, new))
        assert made == new
        assert [one.codec for one in pieces].count("adapter") == 3
        converted = payload(packages.merged, path)
        for ours, theirs in zip(contents(new, runtime), contents(converted, runtime), strict=True):
            assert np.array_equal(ours, theirs)
        if runtime == "tflite":  # a .pte has names of its constants
            assert new == converted
        adapted = sum(len(one.stored) for one in pieces)
        assert adapted < result.factor_bytes + 1500
        assert adapted < 0.6 * sum(one.size_bytes for one in find_weights(new, runtime).distinct())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_runs_as_the_merged_model_does(packages, tmp_path, runtime):
    answers = {}
    for name, path in {"ours": packages.adapted.package, "theirs": packages.merged, "base": packages.base}.items():
        artifact = tmp_path / f"{name}.{RUNTIMES[runtime].rpartition('.')[2]}"
        artifact.write_bytes(payload(path, RUNTIMES[runtime]))
        with open_session(artifact, runtime) as session:
            (answers[name],) = session.run([packages.example])
    assert np.array_equal(answers["ours"], answers["theirs"])
    assert not np.allclose(answers["base"], answers["theirs"], atol=1e-2)


def test_golden_vectors_are_the_adapted_models(packages):
    with open_package(packages.adapted.package) as ours, open_package(packages.merged) as theirs:
        for a, b in zip(ours.golden(), theirs.golden(), strict=True):
            assert np.allclose(a.outputs[0].to_array(), b.outputs[0].to_array(), atol=1e-4)


def test_answers_of_another_model_are_refused(packages, output):
    with pytest.raises(ParityError):
        adapter_package(packages.base, packages.adapters, output, answers=packages.tuned)
    assert not output.exists()


def test_a_folded_batch_norm_is_refused(packages, output):
    with pytest.raises(CallerError, match=r"first\.weight.*batch norm was folded.*take a delta"):
        adapter_package(packages.base, packages.folded, output)
    assert not output.exists()


def test_a_model_that_was_trained_on_is_refused(packages, output):
    with pytest.raises(CallerError, match="as the adapter was trained on it"):
        adapter_package(packages.tuned, packages.adapters, output)


def test_no_adapters_are_refused(packages, output):
    write_adapters(output.with_name("none"), {})
    with pytest.raises(CallerError, match="no adapters"):
        adapter_package(packages.base, output.with_name("none"), output)


def test_a_bias_travels_as_it_is_where_its_factors_are_larger(packages):
    assert "third.bias" in read_adapters(packages.adapters)
    for hints in packages.adapted.hints.values():
        assert all(len(one.stored) < one.size for one in hints.pieces)
        assert len(hints.pieces) == 3

"""Lossy updates of real artifacts, as devices will make and run them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet.repository.delta import encode_delta
from ferryman.devices.fleet.repository.lossy import _check_alike, lossy_artifact, lossy_package
from ferryman.devices.fleet.repository.spans import floats_at, put_weights
from ferryman.devices.fleet.repository.weights import Weight, Weights, find_weights
from ferryman.runtime.contracts.errors import CallerError, PackageError, ParityError
from ferryman.runtime.package import open_package
from ferryman.runtime.pieces.codecs import make
from ferryman.runtime.session import open_session
from ferryman.runtime.updates.fedzip import FedZip
from ferryman.runtime.updates.parse import parse_codec
from tests.support.packages import write_tiny_package
from tests.unit.devices.fleet.repository.conftest import LOW_DB

RUNTIMES = {"executorch": "artifacts/fp32.pte", "tflite": "artifacts/fp32.tflite"}


def payload(path, name):
    with open_package(path) as package:
        return package.read(name)


def contents(data, runtime):
    return [floats_at(data, one) for one in find_weights(data, runtime).distinct()]


def rebuilt(old, new, hints):
    """What a device makes."""
    pieces = encode_delta(old, new, hints)
    made = b""
    for one in pieces:
        base = memoryview(old)[one.base_offset : one.base_offset + one.base_size]
        made += make(one.piece(0, 0), one.stored, base)
    return made, pieces


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_constants_are_found_with_their_contents(packages, runtime):
    """All that training moves, in the order of the graph, however a toolchain lays them out."""
    old, new = (payload(path, RUNTIMES[runtime]) for path in (packages.base, packages.tuned))
    before, after = find_weights(old, runtime), find_weights(new, runtime)
    assert [one.shape for one in before.uses] == [one.shape for one in after.uses]
    assert sum(one.size_bytes for one in before.distinct()) == 4 * (448 + 16 * 9 * 32 + 32 + 32 * 64 + 64 + 640 + 10)
    moved = put_weights(
        old,
        before,
        old,
        before,
        {then: new[now.offset : now.end] for then, now in zip(before.uses, after.uses, strict=True)},
    )
    answers = []
    for data in (moved, new):
        with tempfile.NamedTemporaryFile(suffix=Path(RUNTIMES[runtime]).suffix) as file:
            file.write(data)
            file.flush()
            with open_session(Path(file.name), runtime) as session:
                answers += session.run([packages.example])
    assert np.array_equal(*answers)


@pytest.mark.parametrize("codec", ["fedzip-z20-k15", "fedzip-z2", "dgc-z20"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_device_gets_base_plus_update_to_the_bit(packages, runtime, codec):
    old, wanted = (payload(path, RUNTIMES[runtime]) for path in (packages.base, packages.tuned))
    how = parse_codec(codec)
    result = lossy_artifact("a", old, wanted, runtime, how)
    made, pieces = rebuilt(old, result.data, result.hints.pieces)
    assert made == result.data
    assert 1 <= [one.codec for one in pieces].count("sparse") <= 7
    was, meant, sent = (contents(data, runtime) for data in (old, wanted, made))
    names = [f"{at:06}" for at in range(len(was))]
    update = {name: b - a for name, a, b in zip(names, was, meant, strict=True)}
    decoded = how.decode(how.encode(update, {}), {name: one.shape for name, one in update.items()})
    for name, a, b in zip(names, was, sent, strict=True):
        assert np.array_equal(b, a + decoded[name])
    assert result.wrong == pytest.approx(
        sum(np.square(a - b, dtype=float).sum() for a, b in zip(sent, meant, strict=True))
    )
    assert result.meant == pytest.approx(sum(np.square(one, dtype=float).sum() for one in update.values()))
    assert result.stored_bytes < 1.1 * len(how.encode(update, {})) + 200


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_runs_and_answers_near_the_tuned_model(packages, tmp_path, runtime):
    answers = {}
    for name, path in {"base": packages.base, "tuned": packages.tuned, "lossy": packages.lossy.package}.items():
        artifact = tmp_path / f"{name}{Path(RUNTIMES[runtime]).suffix}"
        artifact.write_bytes(payload(path, RUNTIMES[runtime]))
        with open_session(artifact, runtime) as session:
            (answers[name],) = session.run([packages.example])
    far, near = (np.linalg.norm(answers[one] - answers["tuned"]) for one in ("base", "lossy"))
    assert near < 0.7 * far
    assert packages.lossy.lossy.sqnr_min_db > LOW_DB


def test_the_package_states_what_was_measured(packages):
    result = packages.lossy
    with open_package(result.package) as package, open_package(packages.tuned) as tuned:
        assert package.sha256 == result.sha256
        assert package.golden() == tuned.golden()
        for variant in package.manifest.variants:
            assert variant.sqnr_min_db == pytest.approx(max(5, min(one.sqnr_db for one in variant.verified) - 3))
        assert min(v.sqnr_db for one in package.manifest.variants for v in one.verified) == result.lossy.sqnr_min_db
        with open_package(packages.base) as base:
            assert result.lossy.base_package_sha256 == base.sha256
    assert result.lossy.codec == "fedzip-z30-k15"
    assert result.lossy.ratio > 10
    assert 0.05 < result.lossy.relative_error < 0.8
    assert result.exact == ()


def test_names_of_constants_change_with_their_contents(packages):
    """ExecuTorch looks packed weights up by them."""
    old, new = (payload(path, RUNTIMES["executorch"]) for path in (packages.base, packages.tuned))
    made = lossy_artifact("a.pte", old, new, "executorch", FedZip(0.3)).data
    names = [{of: data[at : at + 64] for at, of in find_weights(data, "executorch").names} for data in (old, made)]
    assert len(set(names[1].values())) == len(names[1]) == 8
    assert not set(names[0].values()) & set(names[1].values())


def test_one_that_misses_the_bar_is_refused_and_not_written(packages, output):
    with pytest.raises(
        ParityError, match=r"by fedzip-z8-k3; send more .*\(fedzip-z16-k3, or fedzip-z8-k7\), or publish"
    ):
        lossy_package(packages.base, packages.tuned, "fedzip-z8-k3", output, sqnr_min_db=50)
    assert not output.exists()


def test_a_model_of_another_structure_is_refused(packages, output):
    old, other = (payload(packages.base, path) for path in RUNTIMES.values())
    weights = find_weights(old, "executorch")
    for uses in (weights.uses[1:], weights.uses[::-1]):
        with pytest.raises(CallerError, match=r"not two versions of one model.*without --lossy"):
            _check_alike("a.pte", weights, Weights(uses))
    twice = (
        Weights((one, two)) for one, two in ((Weight(0, (4,)), Weight(16, (4,))), (Weight(0, (4,)), Weight(0, (4,))))
    )
    with pytest.raises(CallerError, match="share a constant"):
        _check_alike("a.pte", *twice)
    with pytest.raises(PackageError, match="damaged"):
        lossy_artifact("a.pte", old, other, "executorch", FedZip())
    with pytest.raises(CallerError, match=r"is not in .*without --lossy"):
        lossy_package(write_tiny_package(output.with_name("tiny.ferry")), packages.tuned, "fedzip", output)
    assert not output.exists()


def test_weights_that_did_not_change_are_refused(packages, output):
    with pytest.raises(CallerError, match="did not change"):
        lossy_package(packages.base, packages.base, "fedzip", output)


def test_a_package_without_float_weights_is_refused(output):
    tiny = [write_tiny_package(output.with_name(f"{added}.ferry"), added=added) for added in (1.0, 2.0)]
    with pytest.raises(CallerError, match="no artifact holds float32 weights"):
        lossy_package(*tiny, "fedzip", output)


def test_unknown_codecs_and_damaged_packages_are_refused(packages, output):
    with pytest.raises(CallerError, match="gzip"):
        lossy_package(packages.base, packages.tuned, "gzip", output)
    broken = output.with_name("broken.ferry")
    broken.write_bytes(packages.tuned.read_bytes()[:-100])
    with pytest.raises(PackageError):
        lossy_package(packages.base, broken, "fedzip", output)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_damaged_artifact_is_refused_or_read(packages, runtime, data):
    broken = bytearray(payload(packages.base, RUNTIMES[runtime]))
    for _ in range(data.draw(st.integers(1, 20))):
        broken[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    try:
        found = find_weights(bytes(broken[: data.draw(st.sampled_from([len(broken), 30_000, 2000, 7]))]), runtime)
    except PackageError:
        return
    assert all(one.end <= len(broken) for one in found.uses)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_that_are_not_finite_are_refused(packages, runtime):
    old = payload(packages.base, RUNTIMES[runtime])
    weights = find_weights(old, runtime)
    one = weights.distinct()[0]
    bad = put_weights(old, weights, old, weights, {one: np.full(one.size_bytes // 4, np.nan, "<f4").tobytes()})
    with pytest.raises(CallerError, match="not finite"):
        lossy_artifact("a", old, bad, runtime, FedZip())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hints_are_of_their_payloads_alone(packages, runtime):
    result, path = packages.lossy, RUNTIMES[runtime]
    old, new = payload(packages.base, path), payload(result.package, path)
    assert rebuilt(old, new, result.hinting(path, old, new))[0] == new
    assert result.hinting(path, old, new)
    assert result.hinting(path, new, old) == ()
    assert result.hinting("manifest.json", old, new) == ()


def stream(old, runtime, steps, *, keep):
    """Errors of a stream of lossy updates; `keep`: each is taken from what devices have."""
    weights = find_weights(old, runtime)
    codec = FedZip(0.1, 7)
    meant, has = old, old
    errors = []
    for step in range(steps):
        random = np.random.default_rng(step)
        moved = {
            one: (floats_at(meant, one) + random.standard_normal(one.size_bytes // 4) * 0.01).astype("<f4").tobytes()
            for one in weights.distinct()
        }
        before, meant = meant, put_weights(old, weights, meant, weights, moved)
        if keep:
            has = lossy_artifact("a", has, meant, runtime, codec).data
        else:
            made = lossy_artifact("a", before, meant, runtime, codec).data
            sent = {
                one: (floats_at(has, one) + (floats_at(made, one) - floats_at(before, one))).astype("<f4").tobytes()
                for one in weights.distinct()
            }
            has = put_weights(old, weights, has, weights, sent)
        errors.append(
            np.sqrt(sum(np.square(floats_at(has, one) - floats_at(meant, one)).sum() for one in weights.distinct()))
        )
    return errors


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_errors_of_a_stream_of_updates_stay_bounded(packages, runtime):
    """For updates at random, each sent as the tenth that is largest."""
    old = payload(packages.base, RUNTIMES[runtime])
    carried, lost = (stream(old, runtime, 40, keep=keep) for keep in (True, False))
    assert max(carried[25:]) < 1.15 * max(carried[15:25])
    assert lost[-1] > 1.3 * lost[20]
    assert lost[-1] > 1.5 * carried[-1]

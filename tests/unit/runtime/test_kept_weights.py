"""Packed weights on the real runtimes."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ferryman.runtime import cache as caches
from ferryman.runtime.contracts.errors import CallerError, RuntimeFault
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.session import open_session
from ferryman.runtime.sessions import compiled, executorch
from ferryman.runtime.sessions.tflite import TfliteSession
from tests.support.golden import PTE, SHARED
from tests.support.packages import add_model

_HELD = np.load(SHARED / "two.npz")
X, BIAS, SMALL = (_HELD[name] for name in ("x", "bias", "small"))
ENTRIES = ("small", "large")
PLACES = {"executorch": "two.pte", "ai-edge-litert": "two.tflite"}
pytestmark = pytest.mark.usefixtures("long_ago")


@pytest.fixture
def long_ago(monkeypatch):
    monkeypatch.setattr(caches, "_RACY_NS", 0)


@pytest.fixture(params=PLACES)
def place(request):
    return request.param


@pytest.fixture
def artifact(place):
    return SHARED / PLACES[place]


def runtime_of(path):
    return "executorch" if path.suffix == ".pte" else "tflite"


def start(path, entry=None, **options):
    return open_session(path, runtime_of(path), entry=entry, **options)


def plain(path, entry):
    """Without any sharing."""
    if path.suffix == ".pte":
        return executorch.ExecutorchSession(executorch._native(), path, 1, entry=entry)
    return TfliteSession(path, "ai-edge-litert", 1, entry)


def answers(session, x=X):
    with session:
        return session.cache, [array.tobytes() for array in session.run([x])]


def wanted(path, entry, x=X):
    return answers(plain(path, entry), x)[1]


def packed(folder):
    return [path for path in folder.iterdir() if path.suffix == ".packed"]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("entry", ENTRIES)
def test_shared_weights_are_packed_once_and_nothing_is_written(artifact, entry):
    use, found = answers(start(artifact, entry))
    assert use == "memory"
    assert found == wanted(artifact, entry)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_start_finds_them_and_answers_the_same(artifact, tmp_path, threads):
    for use in ("built", "warm", "warm"):
        assert answers(start(artifact, "large", cache=tmp_path, threads=threads)) == (use, wanted(artifact, "large"))


def test_all_entries_are_packed_in_one_go(artifact, tmp_path):
    assert answers(start(artifact, "small", cache=tmp_path))[0] == "built"
    (path,) = packed(tmp_path)
    before = path.read_bytes()
    with start(artifact, "large", cache=tmp_path) as session:
        assert session.cache == "warm"
        assert str(path) in Path("/proc/self/maps").read_text()
        session.run([X])
    assert answers(start(artifact, "large", cache=tmp_path)) == ("warm", wanted(artifact, "large"))
    assert path.read_bytes() == before
    assert packed(tmp_path) == [path]


def test_executorch_packs_nothing_anew_for_another_entry(tmp_path, caplog):
    artifact = SHARED / "two.pte"
    start(artifact, "small", cache=tmp_path).close()
    with caplog.at_level(logging.INFO, "ferryman.executorch"):
        start(artifact, "large", cache=tmp_path).close()
    said = [record.message for record in caplog.records if "XNNWeightsCache" in record.message]
    assert len(said) == 1
    assert said[0].startswith("Loaded packed weight cache")


def test_many_sessions_share_one_file(artifact, tmp_path):
    sessions = [start(artifact, entry, cache=tmp_path) for entry in (*ENTRIES, *ENTRIES)]
    with IsolatedSession(artifact, runtime_of(artifact), entry="large", cache=tmp_path) as apart:
        sessions.append(apart)
        assert [session.cache for session in sessions] == ["built", *["warm"] * 4]
        for session, entry in zip(sessions, (*ENTRIES, *ENTRIES, "large"), strict=True):
            assert [array.tobytes() for array in session.run([X])] == wanted(artifact, entry)
    sessions.pop(0).close()
    assert [array.tobytes() for array in sessions[0].run([X])] == wanted(artifact, "large")
    for session in sessions[:3]:
        session.close()


def test_files_are_closed(artifact, tmp_path):
    start(artifact, "small", cache=tmp_path).close()
    start(artifact, "small").close()
    before = descriptors()
    for entry in ENTRIES:
        start(artifact, entry, cache=tmp_path).close()
        start(artifact, entry).close()
        for options in ({"cache": tmp_path}, {}):
            with pytest.raises(CallerError, match="no entry `nope`"):
                start(artifact, "nope", **options)
    assert descriptors() <= before


def test_damage_is_mended(artifact, tmp_path):
    start(artifact, "small", cache=tmp_path).close()
    (path,) = packed(tmp_path)
    data = bytearray(path.read_bytes())
    for at in (20, len(data) // 2, len(data) - 30):
        data[at] ^= 0x55
    path.chmod(0o600)
    path.write_bytes(data)
    for use in ("built", "warm"):
        assert answers(start(artifact, "large", cache=tmp_path)) == (use, wanted(artifact, "large"))


def test_another_model_under_the_same_path(artifact, tmp_path):
    path = tmp_path / artifact.name
    shutil.copy(artifact, path)
    assert answers(start(path, "small", cache=tmp_path / "cache"))[0] == "built"
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(BIAS.tobytes(), (BIAS + 1).tobytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    with start(path, "small", cache=tmp_path / "cache") as session:
        assert session.cache == "built"
        np.testing.assert_allclose(session.run([X])[0], SMALL + 1, atol=1e-5)


def test_where_nothing_can_be_kept_they_are_packed_once_all_the_same(artifact, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    expected = ("memory", wanted(artifact, "large"))
    assert answers(start(artifact, "large", cache=tmp_path / "file" / "cache")) == expected
    assert "not kept" in caplog.text


@pytest.mark.parametrize("name", ["scaled.pte", "static.pte", "static.tflite"])
def test_where_sharing_would_be_wrong_nothing_is_shared(name, tmp_path):
    path, x = SHARED / name, X
    entry = "forward" if path.suffix == ".pte" else "serving_default"
    if name == "static.tflite":
        x = np.clip(np.round(X * 30), -128, 127).astype(np.int8)
    for options in ({}, {"cache": tmp_path / "cache"}):
        assert answers(start(path, **options), x) == ("off", wanted(path, entry, x))
    assert not (tmp_path / "cache").exists()


def test_it_would_be_wrong_still(tmp_path):
    """Why artifacts are looked through: when this fails, the runtimes know better, and more may be shared."""
    native = executorch._native()
    for name in ("scaled.pte", "static.pte"):
        kept = caches.memory()
        with executorch.ExecutorchSession(native, SHARED / name, 1, path=kept.path) as session:
            assert answers(session)[1] != wanted(SHARED / name, "forward")
    path, x = SHARED / "static.tflite", np.clip(np.round(X * 30), -128, 127).astype(np.int8)
    session = compiled.CompiledSession(path, 1, None, ":memory")
    assert answers(session, x)[1] != wanted(path, "serving_default", x)


def test_answers_that_differ_all_the_same_are_noticed(artifact, tmp_path, monkeypatch, place):
    module = executorch if place == "executorch" else compiled
    monkeypatch.setattr(module, "same_answers", lambda a, b: False)
    for _ in range(2):
        assert answers(start(artifact, "large", cache=tmp_path)) == ("off", wanted(artifact, "large"))
    assert packed(tmp_path) == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".none"]


def test_artifacts_without_shared_weights_are_opened_as_ever(tmp_path):
    with open_session(PTE / "linear.pte", "executorch") as session:
        assert session.cache == "off"
    with open_session(PTE / "branch.pte", "executorch", cache=tmp_path / "cache") as session:
        assert session.cache == "off"
    path = tmp_path / "add.tflite"
    path.write_bytes(add_model(1.0))
    with open_session(path, "tflite", cache=tmp_path / "cache") as session:
        assert isinstance(session, TfliteSession)
    assert not (tmp_path / "cache").exists()


def test_a_dynamic_pte_is_kept_too(tmp_path):
    several = [
        [np.full((rows, 4), rows, np.float32), np.full((rows, 4), rows), np.ones(rows, np.bool_)] for rows in (2, 8)
    ]
    with open_session(PTE / "dynamic.pte", "executorch") as session:
        expected = [session.run(inputs) for inputs in several]
    for use in ("built", "warm"):
        with open_session(PTE / "dynamic.pte", "executorch", cache=tmp_path) as session:
            assert session.cache == use
            for inputs, outputs in zip(several, expected, strict=True):
                assert [a.tobytes() for a in session.run(inputs)] == [a.tobytes() for a in outputs]


def test_what_the_compiled_model_refuses_the_interpreter_runs(monkeypatch, tmp_path, caplog):
    def refuse(*_):
        raise RuntimeFault("no")

    monkeypatch.setattr(compiled, "CompiledSession", refuse)
    for options in ({}, {"cache": tmp_path}):
        with start(SHARED / "two.tflite", "large", **options) as session:
            assert isinstance(session, TfliteSession)
    assert "without its packed weights" in caplog.text


def test_the_compiled_model_says_nothing_on_stderr(capfd):
    start(SHARED / "two.tflite", "large").close()
    assert capfd.readouterr().err == ""


def test_a_folder_that_someone_holds_for_too_long(tmp_path, monkeypatch, caplog):
    """ExecuTorch's session is then opened without; LiteRT's needs nobody's leave."""
    monkeypatch.setattr(caches, "_LOCK_S", 0.05)
    for name in PLACES.values():
        start(SHARED / name, "small", cache=tmp_path).close()
    with caches.alone_in(tmp_path):
        assert answers(start(SHARED / "two.pte", "large", cache=tmp_path)) == (
            "memory",
            wanted(SHARED / "two.pte", "large"),
        )
        assert answers(start(SHARED / "two.tflite", "large", cache=tmp_path))[0] == "warm"
    assert "without its packed weights" in caplog.text
    assert answers(start(SHARED / "two.pte", "large", cache=tmp_path))[0] == "warm"


def test_a_closed_session_says_so(artifact):
    session = start(artifact, "small")
    session.close()
    session.close()
    with pytest.raises(CallerError, match="closed"):
        session.run([X])
    with start(artifact, "small") as session, pytest.raises(CallerError, match="expected"):
        session.run([X.astype(np.float64)])

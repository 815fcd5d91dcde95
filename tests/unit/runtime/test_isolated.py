from __future__ import annotations

import gc
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeCrash, RuntimeFault
from ferryman.runtime.isolated import IsolatedSession
from tests.support.golden import SHARED
from tests.support.packages import add_model

X = np.ones((1, 4), np.float32)


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(add_model(1.0))
    return path


@pytest.fixture
def session(artifact):
    with IsolatedSession(artifact, "tflite") as session:
        yield session


def worker(session):
    return psutil.Process(session._process.pid)


def test_it_runs_and_tells_of_itself(session):
    np.testing.assert_array_equal(session.run([X])[0], X + 1)
    assert (session.interpreter, session.version[:2]) == ("ai-edge-litert", "2.")
    assert session.load_ns > 0
    assert session.last_run_ns > 0


def test_inputs_that_do_not_fit_leave_it_running(session):
    with pytest.raises(CallerError):
        session.run([X[0]])
    np.testing.assert_array_equal(session.run([X])[0], X + 1)


def test_a_dead_worker_is_a_crash_with_its_signal(session):
    worker(session).kill()
    for _ in range(2):
        with pytest.raises(RuntimeCrash, match="died of SIGKILL"):
            session.run([X])


def test_a_real_time_signal_is_told_by_its_number(session):
    worker(session).send_signal(40)
    with pytest.raises(RuntimeCrash, match="died of signal 40"):
        session.run([X])


@pytest.mark.parametrize("inputs", [[X], [np.ones(1 << 20, np.float32)]], ids=["small", "larger than a pipe"])
def test_a_hung_worker_is_ended_in_time_however_much_it_was_to_read(session, inputs):
    worker(session).suspend()
    session.timeout_s = 0.5
    with pytest.raises(RuntimeFault, match=r"did not answer within 0\.5 s and was ended"):
        session.run(inputs)
    assert session._process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e300, 1e18])
def test_any_amount_of_time_may_be_given(session, timeout_s):
    session.timeout_s = timeout_s
    np.testing.assert_array_equal(session.run([X])[0], X + 1)


def test_a_question_broken_off_is_never_answered_by_the_next(session):
    """The answer to the first question must not pass for the answer to the second."""
    with pytest.raises(KeyboardInterrupt):
        _interrupted(session)
    with pytest.raises(RuntimeCrash):
        session.run([X * 5])


def _interrupted(session):
    read = session._read

    def interrupt(*_):
        session._read = read
        assert select.select([session._process.stdout], [], [], 60)[0], "the answer is in the pipe already"
        raise KeyboardInterrupt

    session._read = interrupt
    session.run([X])


def test_a_hung_worker_does_not_outlive_whoever_started_it(artifact, tmp_path):
    """It cannot notice the end of its input, for it is not reading."""
    hang = "import sys, time; from ferryman.runtime import worker; "
    hang += f'worker._answer = lambda *_: (open("{tmp_path}/hangs", "w").close(), time.sleep(600)); worker.main()'
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{hang}'\n")
    python.chmod(0o755)
    starter = "import sys; from pathlib import Path; from ferryman.runtime.isolated import IsolatedSession as S; "
    starter += "S(Path(sys.argv[1]), 'tflite', python=Path(sys.argv[2]))"
    with subprocess.Popen([sys.executable, "-c", starter, str(artifact), str(python)]) as parent:
        watched = psutil.Process(parent.pid)
        deadline = time.monotonic() + 60
        while not (tmp_path / "hangs").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (hung,) = watched.children()
        parent.kill()
    _, alive = psutil.wait_procs([hung], timeout=60)
    assert not alive


def test_it_can_be_killed_from_another_thread(session):
    worker(session).suspend()
    threading.Timer(0.3, session.kill).start()
    with pytest.raises(RuntimeCrash, match="died of SIGKILL"):
        session.run([X])


def test_what_a_worker_said_last_is_in_the_error(artifact, tmp_path):
    with pytest.raises(RuntimeCrash, match="exit code 7; its last words: alas"):
        IsolatedSession(artifact, "tflite", python=script(tmp_path, "echo alas >&2; exit 7"))


def test_a_worker_that_closes_its_pipes_and_stays_is_ended(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("ferryman.runtime.isolated._DEATH_S", 0.2)
    with pytest.raises(RuntimeCrash, match="died of SIGKILL"):
        IsolatedSession(artifact, "tflite", python=script(tmp_path, "exec <&- >&-; exec sleep 60"))


def test_an_answer_that_is_no_record_is_a_crash(artifact, tmp_path):
    with pytest.raises(RuntimeCrash, match="answered no record"):
        IsolatedSession(artifact, "tflite", python=script(tmp_path, "head -c 8 /dev/zero; exec cat >/dev/null"))


def test_a_python_that_is_none_is_the_devices_fault(artifact):
    with pytest.raises(DeviceError, match="/nowhere/python cannot be started: No such file"):
        IsolatedSession(artifact, "tflite", python=Path("/nowhere/python"))


def test_a_missing_artifact_is_the_callers_fault(tmp_path):
    with pytest.raises(CallerError, match="there is no file"):
        IsolatedSession(tmp_path / "nope.tflite", "tflite")


def test_nothing_is_left_open(artifact):
    with IsolatedSession(artifact, "tflite") as session:
        session.run([X])
    gc.collect()  # what other tests left
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(2):
        with IsolatedSession(artifact, "tflite") as session:
            session.run([X])
            child = worker(session)
        assert not child.is_running()
        with pytest.raises(RuntimeFault):
            IsolatedSession(_empty(artifact), "tflite")
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before


def _empty(artifact):
    path = artifact.with_name("empty.tflite")
    path.touch()
    return path


def script(folder, text):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_another_entry_in_the_same_process():
    held = np.load(SHARED / "two.npz")
    with IsolatedSession(SHARED / "two.pte", "executorch", entry="small") as session:
        before = worker(session).pid
        for entry in ("large", "small"):
            session.switch(entry)
            np.testing.assert_allclose(session.run([held["x"]])[0], held[entry], atol=1e-5)
            assert session.entry == entry
        assert worker(session).pid == before
        with pytest.raises(CallerError, match="no entry `nope`"):
            session.switch("nope")
    with pytest.raises(CallerError, match="closed"):
        session.switch("small")


def test_where_no_disk_takes_a_file_it_runs_and_its_last_words_are_kept(artifact, monkeypatch, tmp_path):
    def refuse():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("ferryman.runtime.isolated.tempfile.TemporaryFile", refuse)
    with IsolatedSession(artifact, "tflite") as session:
        np.testing.assert_array_equal(session.run([X])[0], X + 1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho these are my last words >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeCrash, match="these are my last words"):
        IsolatedSession(artifact, "tflite", python=python)

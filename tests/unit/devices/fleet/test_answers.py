"""Measurements on disk: whole or not there, whatever happens."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ferryman.devices.fleet.answers import Answers, Question, cache_home
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from tests.support.fleet import LITERT, measured
from tests.support.interpreters import ROOT
from tests.support.packages import write_tiny_package
from tests.support.telemetry import until

QUESTION = Question(
    package_sha256="00",
    device="local",
    variant="fp32-tflite",
    interpreter=LITERT,
    interpreter_version="2.3.0",
    spec=ProfileSpec(),
    standing={"kernel": "6"},
)


def make_answer(folder: Path) -> Measurement:
    spec = ProfileSpec(variants=("fp32-tflite",), interpreters=(LITERT,))
    return measured(write_tiny_package(folder / "p.ferry"), spec, 2.0)


with tempfile.TemporaryDirectory() as _folder:
    ANSWER = make_answer(Path(_folder))


def question(number: int) -> Question:
    return replace(QUESTION, package_sha256=f"{number:02x}")


def test_what_is_kept_is_found_and_nothing_else_is(tmp_path):
    answers = Answers(tmp_path / "made" / "when-needed")
    assert answers.find(QUESTION) is None
    answers.keep(QUESTION, ANSWER)
    assert answers.find(QUESTION) == ANSWER
    assert answers.find(question(1)) is None


@pytest.mark.parametrize(
    "change",
    [{"device": "x"}, {"variant": "x"}, {"interpreter": "x"}, {"interpreter_version": "x"}, {"standing": {}}],
)
def test_every_part_of_the_question_counts(change):
    assert replace(QUESTION, **change).key != QUESTION.key


def test_a_question_is_known_by_the_same_key_whatever_order_it_was_put_in():
    one, other = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    assert replace(QUESTION, standing=one).key == replace(QUESTION, standing=other).key


def entry_of(answers: Answers) -> Path:
    (path,) = answers.folder.iterdir()
    return path


@given(data=st.data())
def test_a_damaged_answer_is_none_and_makes_room(data):
    with tempfile.TemporaryDirectory() as folder:
        answers = Answers(Path(folder))
        answers.keep(QUESTION, ANSWER)
        path = entry_of(answers)
        whole = path.read_bytes()
        bad = data.draw(
            st.one_of(
                st.binary(max_size=200),
                st.integers(0, len(whole) - 1).map(lambda end: whole[:end]),
                st.integers(0, len(whole) * 8 - 1).map(
                    lambda bit: whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
                ),
            )
        )
        path.write_bytes(bad)
        assert answers.find(QUESTION) is None
        assert not path.exists()
        answers.keep(QUESTION, ANSWER)
        assert answers.find(QUESTION) == ANSWER


def test_an_answer_of_another_schema_is_none(tmp_path):
    answers = Answers(tmp_path)
    answers.keep(QUESTION, ANSWER)
    body = b'{"schema":99}'
    entry_of(answers).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert answers.find(QUESTION) is None


def test_those_not_used_for_longest_make_room(tmp_path):
    answers = Answers(tmp_path)
    answers.keep(QUESTION, ANSWER)
    size = entry_of(answers).stat().st_size
    answers = Answers(tmp_path, max_bytes=3 * size + 10)
    for number in range(1, 3):
        answers.keep(question(number), ANSWER)
    for age, number in enumerate((2, 0, 1)):  # 1 was used last
        os.utime(answers.folder / f"{question(number).key}.json", (age, age))
    answers.find(question(2))
    answers.keep(question(3), ANSWER)
    assert [answers.find(question(number)) is not None for number in range(4)] == [False, True, True, True]


def test_one_that_is_too_large_for_all_is_kept_alone(tmp_path):
    answers = Answers(tmp_path, max_bytes=1)
    answers.keep(QUESTION, ANSWER)
    answers.keep(question(1), ANSWER)
    assert answers.find(QUESTION) is None
    assert answers.find(question(1)) == ANSWER


def test_what_dead_writers_left_is_removed(tmp_path):
    old, young = tmp_path / ".0.dead", tmp_path / ".1.alive"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Answers(tmp_path).keep(QUESTION, ANSWER)
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_written_costs_time_and_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    answers = Answers(tmp_path / "file" / "folder")
    answers.keep(QUESTION, ANSWER)
    assert answers.find(QUESTION) is None
    assert "is not kept" in caplog.text


WRITE = """
import itertools, sys
from pathlib import Path
from tests.unit.devices.fleet.test_answers import ANSWER, question
from ferryman.devices.fleet.answers import Answers
print("begins", flush=True)
for number in itertools.count():
    Answers(Path(sys.argv[1])).keep(question(number % 8), ANSWER)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_answers(tmp_path):
    answers = Answers(tmp_path)
    for round_s in (0.05, 0.07, 0.09, 0.1):
        with subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            until(lambda: any(tmp_path.glob("*.json")))
            time.sleep(round_s)
            writer.kill()
        entries = list(tmp_path.glob("*.json"))
        assert entries
        found = [answers.find(question(number)) for number in range(8)]
        assert [one for one in found if one is not None] == [ANSWER] * len(entries)


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_home() == Path("/somewhere/ferryman")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_home() == Path("/home/me/.cache/ferryman")


def test_without_a_home_it_is_said(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(CallerError, match="set XDG_CACHE_HOME"):
        cache_home()

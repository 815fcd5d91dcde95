"""Whatever is printed cannot steer a terminal, and JSON says what it said."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ferryman.cli import main
from ferryman.runtime import say
from ferryman.runtime.contracts.errors import DeviceError

ROOT = Path(__file__).resolve().parents[3]
EVIL = "\x1b]0;pwn\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\ud800"


def harmless(text):
    return all(c.isprintable() or c == "\n" for c in text)


@given(st.text())
def test_lines_are_printable_and_what_is_printable_stays(text):
    said = say.lines(text)
    assert all(c.isprintable() or c in "\n\t" for c in said)
    if harmless(text):
        assert said == text


@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"])), st.lists))
def test_json_says_the_same(value):
    said = say.json_text(json.dumps(value, ensure_ascii=False).encode())
    assert harmless(said)
    assert json.loads(said) == value


@pytest.mark.parametrize("coloured", [False, True])
def test_echo(capsys, coloured):
    say.echo(f"a{EVIL}b\nc", coloured=coloured)
    said = capsys.readouterr().out
    assert harmless(said)
    assert said.startswith("a?]0;pwn?")
    assert said.endswith("b\nc\n")


def test_colours_of_ours_stay_and_nothing_else(monkeypatch):
    shown = []
    monkeypatch.setattr(click, "echo", lambda text, **_: shown.append(text))
    say.echo("\x1b[1mbold\x1b[0m\x1b[2J", coloured=True)
    say.echo("\x1b[1mbold")
    assert shown == ["\x1b[1mbold\x1b[0m?[2J", "?[1mbold"]


def test_a_line_in_its_place(monkeypatch):
    shown = []
    monkeypatch.setattr(click, "echo", lambda text, **_: shown.append(text))
    say.in_place("at\x1b[2J work")
    assert shown == ["\r\x1b[Kat?[2J work"]


def test_a_log_record():
    record = logging.LogRecord("ferryman", logging.WARNING, "", 0, "it said %s", (EVIL,), None)
    assert harmless(say.PrintableFormatter("%(message)s").format(record))


@pytest.mark.parametrize("error", [DeviceError(f"it said {EVIL}"), OSError(f"it said {EVIL}")])
def test_an_error_of_a_command(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("ferryman.runtime.package.open_package", fail)
    done = CliRunner().invoke(main, ["inspect", "p.ferry"])
    assert done.exit_code == 1
    assert harmless(done.output)
    assert "it said ?]0;pwn?" in done.output


def test_nothing_is_printed_elsewhere():
    aside = re.compile(r"click\.(s?echo|ClickException)\b")
    found = {
        str(path.resolve().relative_to(ROOT))  # src/ferryman has links to the other folders
        for folder in ("src/ferryman", "runtime", "devices", "profiler", "converter")
        for path in (ROOT / folder).rglob("*.py")
        if aside.search(path.read_text())
    }
    assert found == {"runtime/say.py"}

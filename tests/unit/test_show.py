from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ferryman import show as module
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import decode
from ferryman.show import check_targets, show
from tests.support.measurements import full_measurement, measurement
from tests.support.trace_check import check_trace

FOUND = [("pi5", full_measurement()), ("pi5", full_measurement("int8-executorch", "executorch", 0.55, 1))]


class Terminal:
    """Standard output of a terminal."""

    def __init__(self, encoding: str = "utf-8", *, live: bool = True) -> None:
        self.encoding = encoding
        self.live = live
        self.written = ""

    def isatty(self) -> bool:
        return self.live

    def write(self, text: str) -> None:
        text.encode(self.encoding)
        self.written += text

    def flush(self) -> None:
        pass


@pytest.fixture
def terminal(monkeypatch):
    def made(*arguments, columns: str | None = "80", **options) -> Terminal:
        out = Terminal(*arguments, **options)
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr(module, "echo", lambda text, **_: out.write(text + "\n"))
        monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return out

    return made


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_a_terminal_gets_colours_and_its_own_width(terminal, monkeypatch):
    out = terminal()
    show(FOUND)
    assert "\x1b[1m" in out.written
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        out = terminal()
        monkeypatch.setenv(name, value)
        show(FOUND)
        assert "\x1b" not in out.written
        assert widest(out.written) <= 80


@pytest.mark.parametrize(("columns", "width"), [(None, 160), ("100", 100), ("nonsense", 160), ("0", 160)])
def test_a_pipe_gets_plain_text_of_a_width_that_does_not_depend_on_the_terminal(terminal, columns, width):
    out = terminal(live=False, columns=columns)
    show(FOUND)
    assert "\x1b" not in out.written
    assert width - 40 < widest(out.written) <= width


def test_an_output_without_umlauts_is_no_error(terminal):
    out = terminal("ascii", live=False)
    show(FOUND)
    assert "12.7 ?1.3 %" in out.written


def test_many_measurements_are_told_briefly(terminal):
    out = terminal(live=False)
    show(FOUND * 5)
    assert "time by operator" not in out.written
    assert "operators, layers and sustained runs of 10 measurements are in the page" in out.written


def test_everything_at_once(tmp_path, capsys):
    show(FOUND, as_json=True, csv=tmp_path / "a.csv", html=tmp_path / "a.html", trace=tmp_path / "a.json")
    out, err = capsys.readouterr()
    assert [decode(line.encode(), Measurement) for line in out.splitlines()] == [m for _, m in FOUND]
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.samples.csv", "a.html", "a.json"}
    assert check_trace((tmp_path / "a.json").read_text())
    assert [line.partition(":")[0] for line in err.splitlines()] == ["table", "trace", "page"]


def test_json_is_one_record_a_line(capsys):
    show([("pi", measurement())], as_json=True)
    assert json.loads(capsys.readouterr().out)["package_name"] == "digits"


@pytest.mark.parametrize("name", ["no/such/folder/x.csv", "."])
def test_a_file_that_could_not_be_written_is_refused_before_anything_is_measured(tmp_path, name):
    check_targets(tmp_path / "x.csv", None, None)
    with pytest.raises(CallerError, match="cannot write"):
        check_targets(tmp_path / name, None, None)


def test_no_file_overwrites_another_or_what_is_read(tmp_path):
    package = tmp_path / "x.ferry"
    package.touch()
    check_targets(tmp_path / "a.csv", tmp_path / "a.html", Path("/dev/null"), package, None)
    for names in (("x.ferry", None), (None, "x.ferry"), ("a", "a"), ("a.csv", "a.samples.csv")):
        csv, html = (None if name is None else tmp_path / name for name in names)
        with pytest.raises(CallerError, match="would overwrite"):
            check_targets(csv, html, None, package)


def test_the_command_writes_them(tmp_path, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.profile.profile", lambda *_, **__: [m for _, m in FOUND])
    from ferryman.cli import main

    files = [argument for kind in ("csv", "html", "trace") for argument in (f"--{kind}", str(tmp_path / kind))]
    result = CliRunner().invoke(main, ["profile", "x.ferry", "local", *files])
    assert result.exit_code == 0, result.output
    assert "12.7 ±1.3 %" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"csv", "csv.samples.csv", "html", "trace"}

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner

import ferryman
from ferryman.cli import main
from ferryman.runtime.contracts.errors import _BY_PARTY
from tests.support.forge import contents, forged
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.packages import sha256_of, write_tiny_package

WIDTH = 80


def commands(command=main, path=()):
    yield path, command
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            yield from commands(part, (*path, name))


COMMANDS = list(commands())


@pytest.fixture(autouse=True)
def quiet_logging():
    """The command sets levels for the whole process."""
    logger, root = logging.getLogger("ferryman"), logging.getLogger()
    before = logger.level, list(root.handlers)
    yield
    logger.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FERRYMAN_DEVICES", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_package(tmp_path / "tiny.ferry")


def test_every_verb_is_there():
    assert {path[0] for path, _ in COMMANDS if path} == {
        "convert", "inspect", "push", "install", "rollback", "prepare", "agent", "run", "status", "profile", "collect",
        "report",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=["-".join(path) or "main" for path, _ in COMMANDS])
def test_help_names_every_option_and_fits(run, path, command):
    for flag in ("--help", "-h"):
        result = run(*path, flag)
        assert result.exit_code == 0, result.output
    text = result.output
    assert text.startswith("Usage: ")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\\b" not in text
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} says nothing of itself"
            assert all(name in text for name in parameter.opts)
        else:
            assert parameter.make_metavar(click.Context(command)).strip(".[]") in text


def test_the_help_shows_the_journey_line_by_line(run):
    lines = [line.strip() for line in run("--help").output.splitlines()]
    assert "convert   PyTorch model -> package, proven on every interpreter" in lines


def test_commands_are_listed_in_the_order_of_the_journey(run):
    listed = re.findall(r"^  ([a-z]+) ", run("--help").output.partition("Commands:")[2], re.MULTILINE)
    assert listed[:3] == ["convert", "inspect", "push"]
    assert listed[-1] == "report"
    assert "prepare" not in listed


def test_version(run):
    assert run("--version").output.split()[-1] == ferryman.__version__


def test_inspect_prints_what_a_package_holds_needs_and_proves(run, tiny):
    result = run("inspect", tiny)
    assert result.exit_code == 0
    for part in (
        "add-1",
        sha256_of(tiny),
        "float32[1, 4] x",
        "fp32-tflite",
        "tflite-runtime >= 2.14",
        "golden vectors: 1",
    ):
        assert part in result.output


def test_inspect_says_where_an_artifact_is_narrower_than_the_model(run, tiny, tmp_path):
    entries = contents(tiny)
    manifest = json.loads(entries.pop("manifest.json"))
    assert "narrower" not in run("inspect", tiny).output
    manifest["signature"]["inputs"][0]["dtype"] = "float64"
    path = tmp_path / "narrow.ferry"
    path.write_bytes(forged(manifest, entries))
    assert "narrower   x float64 as float32" in run("inspect", path).output


def test_inspect_as_json_is_the_manifest(run, tiny):
    assert json.loads(run("inspect", "--json", tiny).output) == json.loads(contents(tiny)["manifest.json"])


def test_a_hostile_package_cannot_steer_the_terminal(run, tiny, tmp_path):
    entries = contents(tiny)
    manifest = json.loads(entries.pop("manifest.json"))
    manifest["variants"][0]["name"] = "\x1b[2Jgone\r\n\u202e"
    path = tmp_path / "hostile.ferry"
    path.write_bytes(forged(manifest, entries))
    result = run("inspect", path)
    assert result.exit_code == 0
    assert "?[2Jgone???" in result.output
    assert "\x1b" not in result.output


def no_package(tmp_path):
    (tmp_path / "text").write_text("hello " * 100)
    return "inspect", "text"


def no_source(tmp_path):
    return "convert", "nonsense"


def unknown_form(tmp_path):
    return "convert", "a:b", "--form", "2bit"


def bar_that_is_none(tmp_path):
    return "convert", "a:b", "--min-sqnr", "nan"


def unknown_device(tmp_path):
    (tmp_path / "devices.toml").write_text("[devices]\n")
    return "status", "nope", "--devices", "devices.toml"


def bad_device_name(tmp_path):
    return "agent", "--device", "a/b", "--broker", "mqtt://127.0.0.1", "--root", "root"


def bad_broker(tmp_path):
    return "agent", "--device", "a", "--broker", "http://x", "--root", "root"


def inputs_that_are_no_arrays(tmp_path):
    (tmp_path / "x.npy").write_text("hello")
    return "run", "local", "x.npy"


def inputs_in_an_archive(tmp_path):
    np.savez(tmp_path / "x.npz", np.ones(3))
    return "run", "local", "x.npz"


def empty_inputs(tmp_path):
    (tmp_path / "x.npy").touch()
    return "run", "local", "x.npy"


def inputs_that_are_pickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    return "run", "local", "x.npy"


def device_without_a_broker(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    return "run", "local", "x.npy"


def nothing_to_roll_back_to(tmp_path):
    return "rollback", "--root", "root"


def missing_package_to_install(tmp_path):
    return "install", "nope.ferry", "--root", "root"


@pytest.mark.parametrize(
    ("case", "party"),
    [
        (no_package, "package"),
        (no_source, "caller"),
        (unknown_form, "caller"),
        (bar_that_is_none, "caller"),
        (unknown_device, "caller"),
        (bad_device_name, "caller"),
        (bad_broker, "caller"),
        (inputs_that_are_no_arrays, "caller"),
        (inputs_in_an_archive, "caller"),
        (empty_inputs, "caller"),
        (inputs_that_are_pickled, "caller"),
        (device_without_a_broker, "caller"),
        (nothing_to_roll_back_to, "device"),
        (missing_package_to_install, "caller"),
    ],
)
def test_our_errors_are_one_message_that_names_the_party(run, tmp_path, case, party):
    result = run(*case(tmp_path))
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert f"Error: {party}: " in result.output
    assert "Traceback" not in result.output
    assert party in _BY_PARTY


def test_a_missing_file_is_one_message(run):
    result = run("inspect", "nope.ferry")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "nope.ferry" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("inspect",),
        ("push", "p.ferry"),
        ("convert", "a:b", "--to", "onnx"),
        ("profile", "p.ferry", "local", "--runs", "0"),
        ("profile", "p.ferry", "local", "--threads", "-1"),
        ("agent", "--device", "x"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output


def test_verbose_shows_the_traceback(tmp_path):
    (tmp_path / "text").write_text("hello " * 100)
    shown = [
        subprocess.run(
            [sys.executable, "-m", "ferryman.cli", *flags, "inspect", str(tmp_path / "text")],
            capture_output=True,
            text=True,
            check=False,
        )
        for flags in ((), ("-vv",))
    ]
    assert [("Traceback" in one.stderr, one.returncode, one.stdout) for one in shown] == [(False, 1, ""), (True, 1, "")]


def test_a_reader_that_went_away_is_no_traceback(tiny):
    done = subprocess.run(  # noqa: S602  # a pipe is what it is about
        f"{sys.executable} -m ferryman.cli inspect {tiny} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_the_command_works_in_the_device_environment():
    if not DEVICE_PYTHON.exists():
        pytest.skip("there is no .venv-device; make .venv-device/.ready")
    command = DEVICE_PYTHON.with_name("ferryman")
    for path, _ in COMMANDS:
        done = subprocess.run([command, *path, "--help"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([command, "convert", "a:b"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"Error: caller: \w+ is not installed here; pip install 'ferryman\[convert\]'\n$", done.stderr)
    assert "Traceback" not in done.stderr

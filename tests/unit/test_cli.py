from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from importlib import metadata

import click
import numpy as np
import pytest
from click.testing import CliRunner

import ferryman
from ferryman.cli import main
from ferryman.devices.fleet import client as client_module
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, open_store
from ferryman.runtime.contracts.errors import _BY_PARTY
from ferryman.runtime.contracts.messages import InferReply, Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.tensor import to_tensors
from tests.support.forge import contents, forged
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.measurements import measurement
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.packages import sha256_of, write_tiny_package

WIDTH = 80
TIMES = ("inf", "1e10", "nan", "-1", "0")


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
        "report", "pareto", "repick", "compare", "keys", "publish", "withdraw", "repository", "serve", "update",
        "rollout", "ship", "outbox", "ca", "enroll", "identity", "fleet", "confirm", "facts", "devices", "relay",
        "logs",
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
    assert listed[-1] == "pareto"
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
    manifest["created_with"] = {"\x1b[2Jgone\r\n\u202e": "1"}
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


def npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def absurd_inputs(shape):
    def case(tmp_path):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"
        (tmp_path / "x.npy").write_bytes(npy(header) + bytes(16))
        return "run", "local", "x.npy"

    return case


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
        (bar_that_is_none, "caller"),
        (unknown_device, "caller"),
        (bad_device_name, "caller"),
        (bad_broker, "caller"),
        (inputs_that_are_no_arrays, "caller"),
        (inputs_in_an_archive, "caller"),
        (empty_inputs, "caller"),
        *(
            (absurd_inputs(shape), "caller")
            for shape in (
                "(1000000000000,)",
                "(1000000000000",
                "(4, (",
                "(-4,)",
                "(2,) * 99",
                "('a',)",
                "None",
                "(10000000000000000000000,)",
                "(4294967296, 4294967296)",
                "[" * 500,
                "(4,)\x00",
            )
        ),
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


@pytest.mark.parametrize("words", [("inspect", "nope.ferry"), ("profile", "nope.ferry", "local")])
def test_a_missing_package_is_one_message_that_says_what_to_do(run, words):
    result = run(*words)
    assert result.exit_code == 1
    assert result.output.startswith("Error: caller: cannot read the package nope.ferry: No such file or directory; ")
    assert "`ferryman convert` wrote" in result.output


def refuse_toolchains(monkeypatch):
    monkeypatch.setitem(sys.modules, "ferryman.converter.api", None)  # importing it would raise


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mymodels",), "SOURCE is package.module:factory or a .pt2 file, found 'mymodels'"),
        (("nope.pt2",), "no file nope.pt2"),
        (("no_such_package.models:f",), "no module 'no_such_package'; is it installed, or in the current directory?"),
        (("a:b", "-o", "file"), "-o names a folder, and file: File exists; name another"),
        (("a:b", "-o", "file/folder"), "-o names a folder, and file/folder: Not a directory; name another"),
    ],
)
def test_simple_mistakes_are_found_before_the_toolchains_load(run, tmp_path, monkeypatch, words, message):
    refuse_toolchains(monkeypatch)
    (tmp_path / "file").touch()
    result = run("convert", *words)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: caller: {message}")
    assert "loading" not in result.output


def test_an_agents_root_that_is_a_file_says_what_to_do(run, tmp_path):
    (tmp_path / "file").touch()
    result = run("agent", "--device", "pi", "--broker", "mqtt://127.0.0.1", "--root", "file")
    assert result.exit_code == 1
    assert re.search(r"Error: device: cannot make the folder file: File exists; .*--root", result.output)


def test_the_message_names_the_torch_that_the_extra_wants(run, monkeypatch):
    refuse_toolchains(monkeypatch)
    (torch,) = (
        need.partition(";")[0]
        for need in metadata.requires("ferryman")
        if need.startswith("torch==") and "convert" in need
    )
    result = run("convert", "json:loads")
    assert result.output.endswith(f"is not installed here; pip install {torch}, then 'ferryman[convert]'\n")


# What asks an agent.


class Answers:
    """In the place of AgentClient."""

    names = ("scores", "file")

    def __init__(self, broker, device):
        self.device = device

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def infer(self, inputs, **_):
        arrays = [np.ones((1, 2), np.float32), np.arange(3)]
        return InferReply(
            outputs=to_tensors(arrays), names=self.names, duration_ns=5_000_000, variant="v", interpreter="i"
        )

    def status(self, *, timeout_s):
        assert timeout_s == 3
        return Status(
            device=self.device,
            online=True,
            ferryman="0.1.0",
            package_name="digits\x1b[2J",
            package_sha256="ab" * 32,
            interpreters={"executorch": "1.5.1"},
            outbox_pending=2,
        )


@pytest.fixture
def answered(run, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "AgentClient", Answers)
    (tmp_path / "devices.toml").write_text('[pi]\nhost = "h"\nuser = "u"\nbroker = "mqtt://127.0.0.1"\n')
    np.save(tmp_path / "x.npy", np.ones(3))
    return lambda *words: run(*words, "--devices", "devices.toml")


def test_status_reads_as_lines_and_as_json(answered):
    result = answered("status", "pi", "--timeout", "3")
    assert result.output.splitlines() == [
        "pi: online, ferryman 0.1.0",
        "  serves        digits?[2J (abababababab)",
        "  interpreters  executorch 1.5.1",
        "  telemetry     2 records waiting, 0 dropped",
    ]
    assert json.loads(answered("status", "pi", "--timeout", "3", "--json").stdout)["outbox_pending"] == 2


def test_outputs_are_printed_under_their_names(answered):
    output = answered("run", "pi", "x.npy").output
    assert "scores float32[1, 2]\n[[1. 1.]]\n" in output
    assert "file int64[3]\n[0 1 2]\n" in output


@pytest.mark.parametrize(("given", "written"), [("o.npz", "o.npz"), ("o", "o.npz"), ("o.v1", "o.v1.npz")])
def test_outputs_are_written_under_their_names_to_the_path_that_is_told(answered, tmp_path, given, written):
    result = answered("run", "pi", "x.npy", "-o", given)
    assert result.exit_code == 0, result.output
    assert f"wrote {written}: scores float32[1, 2], file int64[3]\n" in result.output
    with np.load(tmp_path / written) as found:
        assert list(found) == ["scores", "file"]
        assert found["file"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("names", [(), ("y",), ("y", "y")])
def test_outputs_without_a_name_each_are_numbered(answered, tmp_path, monkeypatch, names):
    monkeypatch.setattr(Answers, "names", names)
    answered("run", "pi", "x.npy", "-o", "o.npz")
    with np.load(tmp_path / "o.npz") as found:
        assert list(found) == ["output_0", "output_1"]


def test_outputs_that_cannot_be_written_say_what_to_do(answered):
    result = answered("run", "pi", "x.npy", "-o", "no/such/folder")
    assert result.exit_code == 1
    assert "caller: cannot write no/such/folder.npz: No such file or directory; name another with -o" in result.output


@pytest.mark.parametrize("command", ["rollback", "confirm"])
def test_rollback_and_confirm_take_a_device_or_a_root(run, command):
    result = run(command, "local", "--root", "root")
    assert result.exit_code == 2
    assert "the devices file names DEVICE's root" in result.output


@pytest.mark.parametrize("url", ["http://nonsense", None])
def test_the_collector_says_that_it_collects_once_it_does(tmp_path, url):
    url = url or f"mqtt://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "ferryman.cli", "collect", "--broker", url, "--database", str(tmp_path / "d")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
        finally:
            process.terminate()
    assert first
    assert "collecting" not in first


def test_the_collector_tells_where_from_and_where_to(tmp_path):
    with Mosquitto(tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.config.port}"
        command = [sys.executable, "-m", "ferryman.cli", "collect", "--broker", url, "--database", str(tmp_path / "d")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline() == f"collecting from {url} into {tmp_path / 'd'}; interrupt to stop\n"
            process.send_signal(signal.SIGINT)
        assert process.returncode == 0


def test_where_the_broker_and_the_store_are_may_stand_in_the_environment(tmp_path):
    with Mosquitto(tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.config.port}"
        environment = os.environ | {"FERRYMAN_BROKER": url, "FERRYMAN_DATABASE": str(tmp_path / "d")}
        command = [sys.executable, "-m", "ferryman.cli"]
        for words, first in (
            (["collect"], f"collecting from {url} into {tmp_path / 'd'}; interrupt to stop\n"),
            (
                ["agent", "--device", "pi", "--root", str(tmp_path / "r")],
                f"serving as pi, broker {url}; outbox: 0 waiting\n",
            ),
        ):
            with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environment) as process:
                assert process.stderr.readline() == first
                process.send_signal(signal.SIGINT)
            assert process.returncode == 0


def test_a_report_reads_the_store_that_the_environment_names(run, monkeypatch, tmp_path, stored):
    monkeypatch.setenv("FERRYMAN_DATABASE", str(stored))
    monkeypatch.chdir(tmp_path.parent)
    result = run("report", "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("inspect",),
        ("push", "p.ferry"),
        ("convert", "a:b", "--to", "onnx"),
        ("convert", "a:b", "--form", "ternary"),
        ("profile", "p.ferry", "local", "--runs", "0"),
        ("profile", "p.ferry", "local", "--threads", "-1"),
        ("profile", "p.ferry", "local", "--starts", "0"),
        ("profile", "p.ferry", "local", "--rate", "0"),
        ("agent", "--device", "x"),
        *((*words, "--timeout", time) for words in (("run", "pi"), ("status", "pi")) for time in TIMES),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output


def test_a_wrong_timeout_tells_the_range(run):
    for time in TIMES:
        assert "is not in the range 0<x<=86400" in run("run", "pi", "--timeout", time).output


@pytest.fixture
def stored(tmp_path):
    """A store of five measurements, the newest damaged."""
    store = open_store(tmp_path / "ferryman.sqlite")
    rows = [Row(n, "measurement", n, None, True, encode(measurement())) for n in range(1, 6)]
    store.insert(Batch([Arrived("pi", "b", rows, "t", b"")]), 1)
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "ferryman.sqlite")) as connection:
        connection.execute("UPDATE records SET body = '{' WHERE sequence = 5")
        connection.commit()
    return store.path


def test_a_report_names_what_is_damaged_and_shows_the_rest(run, tmp_path, stored):
    result = run("report")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("±n/a") == 4
    left_out = "left out: the measurement of pi, boot b, sequence 5 is damaged: "
    assert left_out in result.stderr
    assert left_out in (tmp_path / "report.html").read_text()


def test_a_report_says_what_it_does_not_show(run, tmp_path, stored, monkeypatch):
    monkeypatch.setattr("ferryman.cli.REPORT_MAX", 3)
    result = run("report")
    left_out = "left out: all but the newest 3 of 5 measurements; narrow them down with --device or --package"
    assert left_out in result.stderr
    assert left_out in (tmp_path / "report.html").read_text()


def test_an_unknown_device_names_the_devices_file_that_was_given(run, tmp_path):
    (tmp_path / "d2.toml").touch()
    assert "(see d2.toml)" in run("status", "nope", "--devices", "d2.toml").output


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
    done = subprocess.run([command, "convert", "json:loads"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(
        r"Error: caller: \w+ is not installed here; pip install torch==\S+, then 'ferryman\[convert\]'\n$", done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--keep", "--keep-samples"])
@pytest.mark.parametrize("days", ["nan", "inf", "1e308", "0", "-1"])
def test_days_that_would_never_be_over_are_refused(option, days):
    done = CliRunner().invoke(main, ["collect", "--broker", "mqtt://localhost", option, days])
    assert done.exit_code == 2
    assert option in done.output

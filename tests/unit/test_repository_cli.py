"""The publisher's commands from keys to prune; what they do is tested where it is done."""

import json
import os
import re

import click
import pytest
from click.testing import CliRunner

from ferryman import repository_cli as cli
from ferryman.devices.fleet.repository.lossy import LossyResult
from ferryman.keys_cli import keys
from ferryman.publisher import told_steps
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.release import LossyUpdate
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.repository import flip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FERRYMAN_REPOSITORY", str(tmp_path / "r"))
    monkeypatch.setenv("FERRYMAN_KEYS", os.pathsep.join(str(tmp_path / one) for one in ("keys", "safe")))
    group = click.Group(
        commands={one.name: one for one in (keys, cli.publish, cli.withdraw, cli.repository, cli.serve)},
        context_settings={"help_option_names": ["-h", "--help"]},  # a command keeps those it is first asked with
    )

    def call(*words, code=0):
        done = CliRunner().invoke(group, [str(word) for word in words])
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return call


def test_a_publishers_day(run, tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry", name="digits")
    root = ["--root-keys", 3, "--threshold", 2, "--offline", tmp_path / "safe"]
    assert "digits" in run("keys", "init", tmp_path / "keys", "--family", "digits", *root)
    assert json.loads(run("keys", "root"))["signed"]["_type"] == "root"
    run("keys", "root", "-o", tmp_path / "root.json")
    assert json.loads((tmp_path / "root.json").read_bytes())["signed"]["version"] == 1
    assert "published digits/1" in run("publish", package)
    assert "nothing was changed" in run("publish", package)
    assert "speech has a key" in run("keys", "add-family", "speech")
    listed = run("repository", "list")
    assert re.search(r"^digits/1  \S+ \S+ UTC\n  digits  ", listed, re.MULTILINE)
    assert "speech: no releases" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert "is whole" in run("repository", "check")
    assert "signed: timestamp" in run("keys", "refresh")
    rotated = run("keys", "rotate", "timestamp", "snapshot")
    assert rotated.count("no longer counts") == 2
    assert rotated.count(f" in {tmp_path / 'keys'}\n") == 2
    shown = run("keys", "show").splitlines()
    roles = [line.split()[0] for line in shown if not line.startswith(" ")]
    assert roles == ["root", "targets", "snapshot", "timestamp", "digits", "speech"]
    assert "version 2, expires" in shown[0]
    assert "2 of 3 keys sign" in shown[1]
    assert max(map(len, shown)) <= 80
    assert "withdrew digits/1" in run("withdraw", "digits/1")
    assert "deleted" in run("repository", "prune", "--grace", 0)
    assert "digits: no releases" in run("repository", "list")


def test_a_folder_that_can_sign_alone_is_warned_of(run, tmp_path, monkeypatch):
    safes = [tmp_path / one for one in ("a", "b", "c")]
    monkeypatch.setenv("FERRYMAN_KEYS", os.pathsep.join(map(str, [tmp_path / "keys", *safes])))
    root = ["--root-keys", 3, "--threshold", 2]
    two, three = ([word for safe in some for word in ("--offline", safe)] for some in (safes[:2], safes))
    said = run("keys", "init", tmp_path / "keys", *root, *two)
    assert f"warning: {safes[0]} holds 2 of root's 3 keys, and 2 sign" in said
    assert "deal them to 3 folders or more" in said
    assert str(safes[1]) not in said.partition("warning")[2]
    assert "warning" in run("keys", "rotate", "root")  # they go where the old ones were
    said = run("keys", "rotate", "root", *three)
    assert "warning" not in said
    for safe in safes:
        (key_id,) = re.findall(rf"root: new key (\w+) in {safe}\n", said)
        assert (safe / f"root-{key_id}.pem").is_file()
    assert "warning" not in run("keys", "rotate", "root")
    assert not list((tmp_path / "keys").glob("root-*"))


def test_a_publish_tells_the_best_way_to_each_artifact_once(run, tmp_path):
    run("keys", "init", tmp_path / "keys", "--family", "digits")
    bulk = os.urandom(50_000)
    packages = [
        write_tiny_package(tmp_path / f"{n}.ferry", added=float(n), padding=bulk, name="digits") for n in range(1, 5)
    ]
    assert "artifacts/model.tflite: 50," in (said := run("publish", packages[0]))
    assert "no delta" in said
    for package in packages[1:3]:
        run("publish", package)
    said = run("publish", packages[3], "--delta-from", 20)
    assert len(said.splitlines()) == 3
    assert re.match(r"artifacts/model.tflite: [\d,]+ bytes, 50,\d+ on the wire, \d\d\d from digits/\d\n", said)
    assert "2 other files: " in said
    grown = r"[\d,]+ new bytes \([\d,]+ of pieces, [\d,]+ of 9 deltas, [\d,]+ of indices\); [\d,]+ of pieces were there"
    assert re.search(r"published digits/4, a package of 5\d,\d+ bytes: " + grown, said)


def test_steps_are_told_on_one_line_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    with told_steps() as progress:
        progress("x" * 30)
    assert capsys.readouterr().err == f"\r\x1b[K{'x' * 19}\r\x1b[K"
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with told_steps() as progress:
        progress("step")
    assert capsys.readouterr().err == ""


def test_the_base_of_a_lossy_update_is_a_base_of_its_delta(run, tmp_path, monkeypatch):
    """What is made of the weights is tested where it is made."""
    made = write_tiny_package(tmp_path / "made.ferry", added=9.0, name="digits")
    lossy = LossyUpdate(codec="none", base_package_sha256="0" * 64, relative_error=0.5, sqnr_min_db=9.0, ratio=50.0)
    monkeypatch.setattr(
        "ferryman.devices.fleet.repository.lossy.lossy_package",
        lambda *_, **__: LossyResult(made, sha256_of(made), lossy, {}, ()),
    )
    run("keys", "init", tmp_path / "keys", "--family", "digits")
    bases = [write_tiny_package(tmp_path / f"{n}.ferry", added=float(n), name="digits") for n in range(3)]
    for base in bases[:2]:
        run("publish", base)
    words = ("--lossy", "fedzip", "--delta-from", 0, "--base")
    said = run("publish", bases[0], *words, bases[0])
    assert "from digits/1" in said
    assert "no release" not in said
    made = write_tiny_package(tmp_path / "made.ferry", added=10.0, name="digits")
    said = run("publish", bases[0], *words, bases[2])
    assert "from 2.ferry" in said
    assert f"{bases[2]} is no release of this repository" in said


def test_a_lossy_update_is_one_from_what_devices_have(run, tmp_path):
    run("keys", "init", tmp_path / "keys", "--family", "digits")
    package = write_tiny_package(tmp_path / "p.ferry", added=2.0, name="digits")
    base = write_tiny_package(tmp_path / "base.ferry", name="digits")
    assert "go together" in run("publish", package, "--lossy", "fedzip", code=2)
    assert "go together" in run("publish", package, "--base", base, code=2)
    with pytest.raises(CallerError, match="no artifact holds float32 weights"):
        run("publish", package, "--lossy", "fedzip", "--base", base)
    assert not list((tmp_path / "r" / "targets").glob("*/*"))


def test_damage_is_an_exit_code(run, tmp_path):
    run("keys", "init", tmp_path / "keys", "--family", "digits")
    run("publish", write_tiny_package(tmp_path / "p.ferry", name="digits"))
    for pack in (tmp_path / "r" / "packs").glob("*/*"):
        flip(pack)
    assert "damaged" in run("repository", "check", code=3)


def test_an_error_names_its_party(run, tmp_path):
    with pytest.raises(CallerError, match="keys init"):
        run("publish", write_tiny_package(tmp_path / "p.ferry", name="digits"))
    with pytest.raises(CallerError, match="no repository"):
        run("serve", tmp_path)


@pytest.mark.parametrize("command", [keys, cli.publish, cli.withdraw, cli.repository, cli.serve])
def test_help_is_written(command):
    assert command.help
    for inner in getattr(command, "commands", {}).values():
        assert inner.help

"""What a phone says reaches the terminal as words, whichever way it comes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from tests.support.phone import STAND_IN, stand_in_bundle
from tests.support.phones import WHY_NO_PHONES, phone_scene

pytestmark = pytest.mark.skipif(bool(WHY_NO_PHONES), reason=WHY_NO_PHONES)

EVIL = "\x1b]0;pwn\x07"
RUNNERS = {
    "its runner's message": 'print(json.dumps({"error": {"party": "package", "message": "\\x1b]0;pwn\\x07"}}))',
    "its runner's last words": 'sys.stderr.write("\\x1b]0;pwn\\x07")',
}


@pytest.fixture
def scene(tmp_path, monkeypatch):
    with phone_scene(tmp_path, monkeypatch) as made:
        yield made


def refused(scene, *words):
    done = CliRunner().invoke(main, scene.words(*words))
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    assert "?]0;pwn?" in done.output
    assert all(c.isprintable() or c == "\n" for c in done.output), done.output


@pytest.mark.parametrize("runner", RUNNERS)
def test_of_its_runner(scene, runner):
    ends = f'if sys.argv[1] == "run":\n    {RUNNERS[runner]}\n    sys.exit(1)\ncommand, words ='
    script = STAND_IN.replace("command, words =", ends)
    assert script != STAND_IN
    scene.bundle = stand_in_bundle(scene.folder / "evil.tar.gz", "2", script)
    refused(scene, "push", scene.first, "phone")


def test_of_its_properties(scene):
    scene.system.properties["ro.product.cpu.abilist"] = EVIL
    refused(scene, "push", scene.first, "phone")


def test_of_whoever_holds_it(scene):
    boot = (scene.system.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    (scene.system.home / "lock").mkdir(parents=True)
    (scene.system.home / "lock/owner").write_text(f"aaaa o{EVIL}h/4026 77 99 {boot}\n")
    (scene.system.home / "lock/beat").write_text("100\n")
    refused(scene, "push", scene.first, "phone")


def test_of_its_state(scene):
    scene.push(scene.first)
    file = scene.system.home / "state.json"
    state = json.loads(file.read_text())
    state["active"] |= {"package_name": EVIL, "package_sha256": "zz"}
    file.write_text(json.dumps(state))
    refused(scene, "profile", scene.first, "phone", "--starts", "1", "--runs", "3", "--no-energy")


def test_as_json_it_is_what_it_was(scene):
    scene.system.properties["ro.product.model"] = "Phone \x9b31m"
    done = CliRunner().invoke(main, scene.words("devices", "probe", "phone", "--json"))
    assert done.exit_code == 0, done.output
    assert all(c.isprintable() or c == "\n" for c in done.output)
    assert json.loads(done.stdout.splitlines()[0])["probe"]["device"] == "phone"

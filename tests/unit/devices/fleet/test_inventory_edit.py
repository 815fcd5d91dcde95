from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet import inventory_edit
from ferryman.devices.fleet.inventory import AdbDevice, MqttDevice, SshDevice, read_devices
from ferryman.devices.fleet.inventory_edit import add_device, label_devices, remove_devices, rename_device
from ferryman.runtime.contracts.errors import CallerError, FerrymanError

SSH = {"host": "pi.lan", "user": "pi"}
FILE = """\
# the lab

[kitchen]  # by the window
host = "kitchen.lan"   # it moves
user = "pi"

# the one on the roof
[roof]
host = "roof.lan"
user = "pi"
labels.site = "roof"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(FILE)
    return path


def test_a_device_is_added_behind_the_others_and_nothing_else_changes(file):
    made = add_device("pi", SSH | {"labels": {"site": "lab"}}, file)
    assert made == SshDevice(name="pi", **SSH, labels={"site": "lab"})
    assert file.read_text() == FILE + '\n[pi]\nhost = "pi.lan"\nuser = "pi"\nlabels = {site = "lab"}\n'
    assert read_devices(file)["pi"] == made


def test_every_kind_can_be_added(file):
    assert isinstance(add_device("phone", {"adb": "R58N"}, file), AdbDevice)
    assert isinstance(add_device("far", {"broker": "mqtt://hub.lan"}, file), MqttDevice)
    assert add_device("local", {"root": "/data"}, file).root == Path("/data")


def test_a_file_that_is_not_there_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "devices.toml"
    add_device("pi", SSH, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == '[pi]\nhost = "pi.lan"\nuser = "pi"\n'


def test_a_name_that_is_taken_is_refused_unless_it_shall_be_replaced(file):
    with pytest.raises(CallerError, match="there is a device 'kitchen' already; `ferryman devices add --replace`"):
        add_device("kitchen", SSH, file)
    assert file.read_text() == FILE
    add_device("kitchen", SSH | {"port": 2222}, file, replace=True)
    assert file.read_text() == FILE.replace('"kitchen.lan"', '"pi.lan"').replace(
        'user = "pi"\n\n# the one', 'user = "pi"\nport = 2222\n\n# the one'
    )


def test_what_is_replaced_keeps_no_setting_that_is_not_given(file):
    add_device("roof", SSH, file, replace=True)
    assert read_devices(file)["roof"].labels == {}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a b", SSH, "expected 1 to 64 of"),
        ("a.b", SSH, "expected 1 to 64 of"),
        ("", SSH, "expected 1 to 64 of"),
        ("pi", {"host": "h"}, "missing required field `user`"),
        ("pi", SSH | {"port": 0}, r">= 1 - at `\$\.port`"),
        ("pi", SSH | {"root": "~/x"}, "a ~ is not expanded on the device"),
        ("pi", SSH | {"labels": {"all": "x"}}, "label all=x: expected NAME=VALUE"),
        ("pi", SSH | {"command": "a 'b"}, "No closing quotation"),
    ],
)
def test_what_is_no_device_is_refused_and_the_file_is_as_it_was(file, name, settings, message):
    with pytest.raises(CallerError, match=message):
        add_device(name, settings, file)
    assert file.read_text() == FILE


def test_a_device_is_taken_out(file):
    remove_devices(["kitchen"], file)
    assert set(read_devices(file)) == {"local", "roof"}
    assert "# the lab" in file.read_text()
    with pytest.raises(CallerError, match="no device 'kitchen' in the devices file; there are: roof"):
        remove_devices(["kitchen"], file)


def test_all_are_taken_out_or_none(file):
    with pytest.raises(CallerError, match="no device 'attic' in the devices file"):
        remove_devices(["kitchen", "attic"], file)
    assert file.read_text() == FILE
    remove_devices(["kitchen", "roof", "kitchen"], file)
    assert set(read_devices(file)) == {"local"}


def test_a_device_is_renamed_where_it_stands(file):
    made = rename_device("kitchen", "hall", file)
    assert made == SshDevice(name="hall", host="kitchen.lan", user="pi")
    assert file.read_text() == FILE.replace("[kitchen]", "[hall]")


@pytest.mark.parametrize(
    "text",
    [
        '[pi.labels]\na = "b"\n\n[pi]\nhost = "h"\nuser = "u"\n',
        '[pi]\nhost = "h"\nuser = "u"\n\n[roof]\nhost = "r"\nuser = "u"\n\n[pi.labels]  # here\na = "b"\n',
        '["pi"]\nhost = "h"\nuser = "u"\nlabels.a = "b"\n',
        'pi = {host = "h", user = "u", labels = {a = "b"}}\n',
    ],
)
def test_a_device_is_renamed_however_it_is_written(tmp_path, text):
    path = tmp_path / "devices.toml"
    path.write_text(text)
    assert rename_device("pi", "new", path).labels == {"a": "b"}
    assert "pi" not in read_devices(path)
    assert path.read_text() == text.replace('"pi"', "new").replace("pi", "new")


def test_a_name_that_is_taken_or_none_is_given_to_nobody(file):
    for old, new, message in (
        ("kitchen", "roof", "there is a device 'roof' already"),
        ("attic", "pi", "no device 'attic' in the devices file"),
        ("kitchen", "a b", "expected 1 to 64 of"),
    ):
        with pytest.raises(CallerError, match=message):
            rename_device(old, new, file)
    file.write_text('kitchen.host = "h"\nkitchen.user = "u"\n')
    with pytest.raises(CallerError, match="written in a way that cannot be changed here"):
        rename_device("kitchen", "hall", file)
    assert "hall" not in file.read_text()


@pytest.mark.parametrize(
    "labels",
    ['labels = {site = "a", old = "x"}', 'labels.site = "a"\nlabels.old = "x"', '[pi.labels]\nsite = "a"\nold = "x"'],
)
def test_labels_are_set_and_taken_away_however_they_are_written(tmp_path, labels):
    path = tmp_path / "devices.toml"
    path.write_text(f'[pi]\nhost = "h" # here\nuser = "u"\n{labels}\n\n# last words\n')
    (made,) = label_devices(["pi"], {"site": "b", "stage": "canary"}, ("old",), path)
    assert made.labels == {"site": "b", "stage": "canary"}
    assert read_devices(path)["pi"].labels == made.labels
    assert "# here" in path.read_text()
    assert "# last words" in path.read_text()
    assert label_devices(["pi"], {}, ("site", "stage"), path)[0].labels == {}


def test_a_label_that_is_not_there_cannot_be_taken_away(file):
    with pytest.raises(CallerError, match="has no label 'stage' in the devices file; there are: site"):
        label_devices(["roof"], {}, ("stage",), file)
    with pytest.raises(CallerError, match="no device 'attic'"):
        label_devices(["attic"], {"a": "b"}, (), file)


def test_a_link_stays_a_link_and_modes_stay(file, tmp_path):
    file.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    add_device("pi", SSH, link)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert "pi" in read_devices(file)


def test_line_ends_stay(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_bytes(FILE.replace("\n", "\r\n").encode())
    label_devices(["roof"], {"site": "attic"}, (), path)
    assert path.read_bytes() == FILE.replace('"roof"\n', '"attic"\n').replace("\n", "\r\n").encode()


def test_a_damaged_file_is_not_touched(tmp_path):
    path = tmp_path / "devices.toml"
    for text in ("[pi", '[pi]\nhost = "h"\n', "x = 1\n"):
        path.write_text(text)
        with pytest.raises(CallerError, match=r"devices\.toml"):
            add_device("new", SSH, path)
        assert path.read_text() == text


def test_where_the_disk_refuses_the_file_is_as_it_was(file, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CallerError, match=r"cannot be written: .*No space left"):
        add_device("pi", SSH, file)
    assert file.read_text() == FILE


def test_several_at_once_lose_nothing(file):
    code = (
        "import sys; from pathlib import Path\n"
        "from ferryman.devices.fleet.inventory_edit import add_device, label_devices\n"
        "me, path = sys.argv[1], Path(sys.argv[2])\n"
        "for n in range(5):\n"
        "    add_device(f'{me}-{n}', {'host': 'h', 'user': 'u'}, path)\n"
        "    label_devices([f'{me}-{n}'], {'by': me}, (), path)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n), str(file)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = read_devices(file)
    assert len(found) == 3 + 15
    assert all(found[f"{me}-{n}"].labels == {"by": str(me)} for me in range(3) for n in range(5))


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(file):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from ferryman.devices.fleet import inventory_edit\n"
        "from ferryman.runtime import durable\n"
        "left = int(sys.argv[2])\n"
        "def counted(real):\n"
        "    def call(*a, **k):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "        return real(*a, **k)\n"
        "    return call\n"
        "for name in ('write', 'fsync', 'close', 'replace', 'rename'):\n"
        "    setattr(os, name, counted(getattr(os, name)))\n"
        "inventory_edit.add_device('pi', {'host': 'h', 'user': 'u'}, Path(sys.argv[1]))\n"
    )
    ends = set()
    for left in range(0, 12, 2):
        file.write_text(FILE)
        ends.add(subprocess.run([sys.executable, "-c", code, str(file), str(left)], check=False).returncode)
        assert set(read_devices(file)) - {"pi"} == {"local", "kitchen", "roof"}
        add_device("next", SSH, file)  # whatever was left lying about
    assert ends == {0, 9}


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
COMMENT = st.text(st.characters(categories=["L", "N", "Zs"]), max_size=10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, TEXT, COMMENT), max_size=4, unique_by=lambda one: one[0]),
    NAMES,
    TEXT,
    st.booleans(),
)
def test_whatever_is_there_the_rest_says_the_same_afterwards(there, name, user, replace):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "devices.toml"
        text = "".join(f"# {comment}\n[{one}]\nhost = 'h' # {comment}\nuser = 'u'\n" for one, _, comment in there)
        path.write_text(text)
        before = tomllib.loads(text)
        try:
            add_device(name, {"host": "new", "user": user}, path, replace=replace)
        except CallerError:
            assert path.read_text() == text
            return
        after = tomllib.loads(path.read_text())
        assert after == before | {name: {"host": "new", "user": user}}
        for _, _, comment in there:
            assert comment in path.read_text()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_no_text_makes_it_fail_in_another_way(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "devices.toml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        before = path.read_bytes()
        try:
            add_device("pi", SSH, path)
        except FerrymanError:
            assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_does_not_take_a_users_file(file):
    os.chown(file, 65534, 65534)
    add_device("pi", SSH, file)
    assert (file.stat().st_uid, file.stat().st_gid) == (65534, 65534)


@pytest.mark.parametrize("wrong", ["", "[pi]\nhost = 'other'\nuser = 'u'\n", "[["])
def test_a_text_that_would_say_something_else_is_never_written(file, monkeypatch, wrong):
    monkeypatch.setattr(inventory_edit.tomlkit, "dumps", lambda _: wrong)
    with pytest.raises(CallerError, match=r"cannot be changed here .*; edit it by hand"):
        add_device("pi", SSH, file)
    assert file.read_text() == FILE


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "devices.toml")
    with pytest.raises(CallerError, match=r"devices\.toml: no regular file"):
        add_device("pi", {"host": "h", "user": "u"}, tmp_path / "devices.toml")

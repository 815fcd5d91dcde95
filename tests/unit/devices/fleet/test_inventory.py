from __future__ import annotations

import os
from pathlib import Path

import pytest

from ferryman.devices.fleet.inventory import LocalDevice, SshDevice, connect, find_device, read_devices
from ferryman.devices.transport.local import LocalTransport
from ferryman.runtime.contracts.errors import CallerError


def devices(tmp_path, text):
    path = tmp_path / "devices.toml"
    path.write_text(text)
    return read_devices(path)


def test_every_setting_reaches_the_device(tmp_path):
    found = devices(
        tmp_path,
        """
        [kitchen]
        host = "kitchen.lan"
        user = "pi"
        port = 2222
        key = "~/.ssh/fleet"
        known_hosts = "/etc/known"
        command = "/opt/venv/bin/ferryman"
        root = "/data/ferryman"
        broker = "mqtt://hub.lan"
        """,
    )
    assert found["kitchen"] == SshDevice(
        name="kitchen",
        host="kitchen.lan",
        user="pi",
        port=2222,
        key=Path("~/.ssh/fleet"),
        known_hosts=Path("/etc/known"),
        command="/opt/venv/bin/ferryman",
        root=Path("/data/ferryman"),
        broker="mqtt://hub.lan",
    )


def test_defaults(tmp_path):
    found = devices(tmp_path, '[pi]\nhost = "pi"\nuser = "u"')["pi"]
    assert isinstance(found, SshDevice)
    assert (found.port, found.command, found.root, found.key) == (22, "ferryman", Path("/var/lib/ferryman"), None)


def test_this_machine_needs_no_entry_and_may_have_one(tmp_path):
    assert isinstance(devices(tmp_path, "")["local"], LocalDevice)
    local = devices(tmp_path, '[local]\nroot = "/data"')["local"]
    assert local.root == Path("/data")
    assert isinstance(connect(local), LocalTransport)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[pi]\nuser = "u"', r"device 'pi': .*missing required field `host`.*settings are: .*known_hosts"),
        ('[pi]\nhost = "h"\nuser = "u"\nprot = 1', "unknown field `prot`"),
        ('[pi]\nhost = "h"\nuser = "u"\nport = "22"', r"Expected `int`, got `str` - at `\$\.port`"),
        ('[pi]\nhost = "h"\nuser = "u"\nport = 0', r">= 1 - at `\$\.port`"),
        ('[pi]\nhost = "h"\nuser = "u"\nkey = 1', r"expected a path, found 1"),
        ('[pi]\nhost = "h"\nuser = "u"\nname = "x"', "remove `name`"),
        ('[pi]\nhost = "h"\nuser = "u"\ncommand = "a \'b"', "No closing quotation"),
        ('[local]\nhost = "h"', "unknown field `host`"),
        ('host = "h"', r"expected a table \[host\]"),
        ("[pi", "devices.toml"),
        ('[pi]\nhost = "kitchen..lan"\nuser = "u"', r"device 'pi': host 'kitchen\.\.lan' is no name"),
        (f'[pi]\nhost = "{"a" * 64}.lan"\nuser = "u"', "device 'pi': host 'a+.lan' is no name"),
        ('[pi]\nhost = ""\nuser = "u"', r">= 1 - at `\$\.host`"),
        ('[pi]\nhost = "a\\u0000b"\nuser = "u"', "device 'pi': host has a NUL"),
        ('[pi]\nhost = "h"\nuser = "a\\u0000b"', "device 'pi': user has a NUL"),
        ('[pi]\nhost = "a\\nb"\nuser = "u"', r"device 'pi': host 'a\\nb' has a character"),
        ('[pi]\nadb = "a\\u001b[2J"', r"device 'pi': adb 'a\\x1b\[2J' has a character"),
        ('[pi]\nbroker = "mqtt://h\\r"', "device 'pi': broker .* has a character"),
        ('[pi]\nhost = "h"\nuser = "u"\nroot = "/a\\u0000b"', "device 'pi': root has a NUL"),
        ('[local]\nroot = "/a\\u0000b"', "device 'local': root has a NUL"),
        ('[pi]\nhost = "h"\nuser = "u"\nkey = "~nosuchuser/id"', "device 'pi': key ~nosuchuser/id: .*home"),
        ('[pi]\nhost = "h"\nuser = "u"\nknown_hosts = "~nosuchuser/id"', "device 'pi': known_hosts ~nosuchuser/id: "),
        ('[local]\nroot = "~nosuchuser/id"', "device 'local': root ~nosuchuser/id: "),
        ('[pi]\nhost = "h"\nuser = "u"\nroot = "~/ferr"', "device 'pi': root ~/ferr: .* the absolute path there"),
        (f"x = {'[' * 5000}{']' * 5000}", "devices.toml: .*nested"),
    ],
)
def test_a_wrong_file_is_told_where_it_is_wrong(tmp_path, text, message):
    with pytest.raises(CallerError, match=message):
        devices(tmp_path, text)


def test_an_unknown_device_lists_those_there_are(tmp_path):
    found = devices(tmp_path, '[pi]\nhost = "h"\nuser = "u"')
    with pytest.raises(CallerError, match="no device 'pie'; there are: local, pi"):
        find_device(found, "pie")


def test_the_file_is_found_where_the_environment_says(tmp_path, monkeypatch):
    (tmp_path / "d.toml").write_text('[pi]\nhost = "h"\nuser = "u"')
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "d.toml"))
    assert "pi" in read_devices()
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "none.toml"))
    assert list(read_devices()) == ["local"]
    with pytest.raises(CallerError, match="no devices file"):
        read_devices(tmp_path / "none.toml")


def test_a_root_on_this_machine_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert devices(tmp_path, '[local]\nroot = "~/ferr"')["local"].root == tmp_path / "ferr"


def test_a_home_that_is_not_there_is_told_of_the_environment_too(monkeypatch):
    monkeypatch.setenv("FERRYMAN_DEVICES", "~nosuchuser/x")
    with pytest.raises(CallerError, match="FERRYMAN_DEVICES ~nosuchuser/x: "):
        read_devices()


def test_an_unknown_device_names_the_file_that_was_read(tmp_path):
    path = tmp_path / "d2.toml"
    path.write_text("")
    with pytest.raises(CallerError, match=r"no device 'pie'; there are: local \(see .*d2\.toml\)"):
        find_device(read_devices(path), "pie", path)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "devices.toml")
    with pytest.raises(CallerError, match=r"devices\.toml: no regular file"):
        read_devices(tmp_path / "devices.toml")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CallerError, match="Is a directory"):
        read_devices(tmp_path)

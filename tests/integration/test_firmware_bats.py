"""The firmware scripts' bats tests: usage here, all as root of an amd64 Debian, those tagged `arch` of an arm64 one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from ferryman.devices.certificates import utc_now
from ferryman.devices.fleet.authority.acl import write_acl
from ferryman.devices.fleet.authority.authority import Authority, init
from ferryman.devices.fleet.authority.broker_files import BrokerOptions, write_broker, write_server
from tests.support.device_root import unpacked_root, why_not
from tests.support.interpreters import ROOT

TESTS = ROOT / "tests" / "firmware"
FILES = sorted(path.name for path in TESTS.glob("*.bats"))
USAGE = "^(wrong usage|help|a dry run|a script can|no script has)"
"""Tests that need no root of their own and take no time."""
PORTS = {"devices_port": 21883, "hosts_port": 21886}
_NAMESPACE = f"fm-bats-{os.getpid()}"


def problems(done, *, may_skip=False):
    """What a run of `bats --tap` has against the scripts: each failed or skipped test with what it said."""
    blocks = re.split(r"^(?=ok |not ok )", done.stdout, flags=re.MULTILINE)
    plan, blocks = blocks[0], blocks[1:]
    planned = re.search(r"1\.\.(\d+)", plan)
    skipped = [] if may_skip else [block for block in blocks if re.match(r"ok \d+ .*# skip", block)]
    bad = [block for block in blocks if block.startswith("not ok")] + skipped
    if planned is None or int(planned[1]) != len(blocks):
        bad.append(f"of {plan.strip()} tests {len(blocks)} were told of: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    if done.returncode and not bad:
        bad.append(f"exit code {done.returncode}: {done.stderr}")
    return "\n".join(bad)


@pytest.mark.skipif(shutil.which("bats") is None, reason="bats is not installed (apt-get install bats)")
@pytest.mark.parametrize("name", FILES)
def test_usage_is_the_same_here(name):
    done = subprocess.run(
        ["bats", "--tap", "--filter", USAGE, str(TESTS / name)], capture_output=True, text=True, check=False
    )
    assert not (found := problems(done, may_skip=os.geteuid() != 0)), found


@pytest.fixture(scope="module")
def network():
    """A namespace with nothing but its own loopback, so that brokers in it are in nobody's way."""
    subprocess.run(["ip", "netns", "add", _NAMESPACE], check=True)
    subprocess.run(["ip", "-n", _NAMESPACE, "link", "set", "lo", "up"], check=True)
    yield _NAMESPACE
    subprocess.run(["ip", "netns", "delete", _NAMESPACE], check=True)


@pytest.fixture(scope="module", params=["amd64", "arm64"])
def root(request, tmp_path_factory):
    if reason := why_not(request.param):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(request.param)
    write_brokers(folder)
    with unpacked_root(request.param, folder) as root:
        source = root.path / "src"
        shutil.copytree(ROOT / "firmware_scripts", source / "firmware_scripts")
        shutil.copytree(TESTS, source / "tests" / "firmware")
        for name in ("broker", "broker-2"):
            shutil.copytree(folder / name, source / name)
        yield root


def write_brokers(folder):
    """`broker`, `broker-2` where another host is known, each with a host's certificate as client.pem."""
    init(folder / "ca", utc_now())
    authority = Authority(folder / "ca")
    for name in ("broker", "broker-2"):
        written = folder / name
        written.mkdir()
        (written / "client.pem").write_bytes(authority.make_host(f"host-{name}", ["viewer"], utc_now()))
        write_server(authority, written, ["localhost", "127.0.0.1"], utc_now())
        write_broker(authority, written, BrokerOptions(path=f"/elsewhere/{name}", bind="127.0.0.1", **PORTS), utc_now())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_in_a_root(root, network, name):
    env = {
        "FERRYMAN_TEST_ROOT": root.arch,
        "FERRYMAN_TEST_BROKER": "/src/broker",
        "FERRYMAN_TEST_BROKER_2": "/src/broker-2",
    }
    # Under qemu each process takes a tenth of a second: there, what shows that a script and the programs that it calls
    # work on that architecture; what is the same on any machine is left to the other root.
    some = ["--filter-tags", "arch"] if root.arch == "arm64" else []
    command = ["bats", "--tap", "--timing", *some, f"/src/tests/firmware/{name}"]
    done = root.run(command, netns=network, env=env, timeout_s=600, check=False)
    assert not (found := problems(done)), found
    assert "ok 1 " in done.stdout  # no file is without any


def test_a_local_broker_gives_devices_the_rights_that_certificates_do():
    text = (ROOT / "firmware_scripts" / "setup_broker.sh").read_text()
    found = []
    for right in ("write", "read"):
        leaves = re.search(rf"^DEVICE_{right.upper()}S='(.*?)'", text, re.MULTILINE)
        assert leaves is not None
        found += [f"pattern {right} ferryman/v1/%u/{leaf}" for leaf in leaves[1].split()]
    assert found == [line for line in write_acl({}).splitlines() if line.startswith("pattern")]

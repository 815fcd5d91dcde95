"""A device behind a link of its own: a network namespace and a veth pair; takes root and `ip`.

The link can be cut and slowed (tbf). netem, which drops and delays single packets, is not in every kernel; `lossy.py`
does that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = "10.78.{net}.1"
LAN = "10.79.{net}.{number}"
"""Of machines at one switch; the host is the first."""


@dataclass(frozen=True)
class Link:
    """Between the host, at `host`, and the namespace."""

    name: str
    host: str
    address: str = ""
    """Of the namespace, where it is one of several at a switch."""

    def run(self, command: Sequence[str], **options) -> subprocess.Popen[str]:
        """Start a process at the far end."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], text=True, **options)

    def down(self) -> None:
        _ip("link", "set", f"{self.name}v", "down")

    def up(self) -> None:
        _ip("link", "set", f"{self.name}v", "up")

    def slow(self, bytes_s: int, latency_ms: int = 200) -> None:
        """Let no more through to the device; what waits longer is dropped."""
        burst = max(4096, bytes_s // 50)
        limits = ["rate", f"{bytes_s * 8}bit", "burst", str(burst), "latency", f"{latency_ms}ms"]
        subprocess.run(["tc", "qdisc", "replace", "dev", f"{self.name}v", "root", "tbf", *limits], check=True)

    def fast(self) -> None:
        """Take back what `slow` did."""
        subprocess.run(["tc", "qdisc", "delete", "dev", f"{self.name}v", "root"], check=True, capture_output=True)

    def bytes_to_device(self) -> int:
        """Frames and all, as the host's end of the link counts them."""
        return int(Path(f"/sys/class/net/{self.name}v/statistics/tx_bytes").read_text())


def why_not() -> str:
    """Why there can be no namespaces here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "ip and tc are not installed: apt-get install iproute2"
    tried = subprocess.run(["ip", "netns", "add", f"fp{os.getpid()}"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"ip netns add: {tried.stderr.strip()}"
    _ip("netns", "delete", f"fp{os.getpid()}")
    return ""


@contextmanager
def far_device(number: int = 0) -> Iterator[Link]:
    """A namespace whose only way out is a veth pair to the host; `number` tells several of one process apart."""
    if reason := why_not():
        pytest.skip(reason)
    name, net = f"f{os.getpid()}x{number}", (os.getpid() + 60 * number) % 250
    host = HOST.format(net=net)
    try:
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{host}/24", "dev", f"{name}v")
        _ip("link", "set", f"{name}v", "up")
        _ip("-n", name, "addr", "add", f"10.78.{net}.2/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", name, "link", "set", device, "up")
        yield Link(name, host)
    finally:
        subprocess.run(["ip", "link", "delete", f"{name}v"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def lan(count: int) -> Iterator[tuple[Link, ...]]:
    """So many namespaces at one switch, which the host is at as well."""
    if reason := why_not():
        pytest.skip(reason)
    switch, net = f"b{os.getpid()}", os.getpid() % 250
    host = LAN.format(net=net, number=1)
    names = [f"l{os.getpid()}x{number}" for number in range(count)]
    try:
        _ip("link", "add", switch, "type", "bridge")
        _ip("addr", "add", f"{host}/24", "dev", switch)
        _ip("link", "set", switch, "up")
        links = []
        for number, name in enumerate(names, start=2):
            address = LAN.format(net=net, number=number)
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}v", "master", switch, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            links.append(Link(name, host, address))
        yield tuple(links)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", switch], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

"""A link that loses and delays single packets, for kernels without netem: two TUN devices and what carries between."""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.netns import Link, why_not

_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 2048


class Carrier:
    """Carries packets both ways; counts those it loses."""

    def __init__(self, ends: tuple[int, int], *, loss: float, delay_s: float, jitter_s: float, seed: int) -> None:
        self.carried = self.lost = 0
        self._ends = ends
        self._loss, self._delay_s, self._jitter_s = loss, delay_s, jitter_s
        self._chance = random.Random(seed)  # noqa: S311  # no secret
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lossy link", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        one, other = self._ends
        while not self._stop.is_set():
            wait_s = self._waiting[0][0] - time.monotonic() if self._waiting else 0.1
            for end in select.select(self._ends, (), (), max(0.0, min(wait_s, 0.1)))[0]:
                self._take(end, other if end == one else one)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._waiting)
                os.write(end, packet)

    def _take(self, end: int, other: int) -> None:
        packet = os.read(end, _PACKET_BYTES)
        if self._chance.random() < self._loss:
            self.lost += 1
            return
        self.carried += 1
        due_s = time.monotonic() + self._delay_s + self._chance.uniform(0, self._jitter_s)
        heapq.heappush(self._waiting, (due_s, self.carried, other, packet))


@contextmanager
def lossy_device(
    *, loss: float, delay_s: float, jitter_s: float = 0.0, seed: int = 1
) -> Iterator[tuple[Link, Carrier]]:
    """A namespace whose only way out loses this share of packets, and has the others wait, each way.

    Jitter lets packets overtake each other.
    """
    if reason := why_not():
        pytest.skip(reason)
    name, net = f"t{os.getpid()}", os.getpid() % 250
    host, far = f"10.77.{net}.1", f"10.77.{net}.2"
    with _tun(f"{name}v") as here, _tun(f"{name}w") as there:
        try:
            _ip("netns", "add", name)
            _ip("link", "set", f"{name}w", "netns", name)
            _ip("addr", "add", host, "peer", far, "dev", f"{name}v")
            _ip("link", "set", f"{name}v", "up")
            _ip("-n", name, "addr", "add", far, "peer", host, "dev", f"{name}w")
            for device in (f"{name}w", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            carrier = Carrier((here, there), loss=loss, delay_s=delay_s, jitter_s=jitter_s, seed=seed)
            try:
                yield Link(name, host), carrier
            finally:
                carrier.close()
        finally:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def _tun(name: str) -> Iterator[int]:
    """A network device whose packets are read and written here; it goes with its descriptor."""
    try:
        end = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"{_TUN}: {error.strerror}")
    try:
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        yield end
    finally:
        os.close(end)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)

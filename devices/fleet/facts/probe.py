"""Ask many devices at once over every way they have; each way's failure is its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ferryman.devices.fleet.facts.known import Known, remember
from ferryman.devices.fleet.facts.ways import Answer, Way, ways_of
from ferryman.devices.fleet.inventory import Device
from ferryman.runtime.contracts.errors import RequestTimeout, WireError, to_wire
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.record import Record

AT_ONCE = 16
"""Ways that are asked at the same time."""
TIMEOUT_S = 20.0
"""Of each step of a way: connecting, logging in, asking."""
_STEPS = 3
"""Of them a way has at most; what has not ended then is left behind."""


class Reached(Record, kw_only=True):
    """How one way went."""

    way: str
    """`local`, `ssh`, `adb`, `mqtt`."""
    error: WireError | None = None
    """None: the device answered."""
    note: str = ""
    took_s: float


class Probe(Record, kw_only=True):
    """What came of one device."""

    device: str
    ways: tuple[Reached, ...]
    """Each that the devices file gives it."""
    facts: DeviceFacts | None = None
    """Of the first way that brought any; None: none did."""
    way: str = ""
    """Which that was."""
    probed_at_ns: int
    """Unix epoch, by this machine's clock."""

    @property
    def failed(self) -> bool:
        """Whether any of its ways failed."""
        return any(one.error is not None for one in self.ways) or self.facts is None


def probe(
    devices: Sequence[Device],
    *,
    timeout_s: float = TIMEOUT_S,
    ways: Callable[[Device], Sequence[tuple[str, Way]]] = ways_of,
    now_ns: Callable[[], int] = time.time_ns,
) -> Iterator[Probe]:
    """Ask, and yield each device as it is done; those that answered are remembered.

    Args:
        devices: whom; each once.
        timeout_s: of each step of a way (connecting, logging in, asking); a way is given up after three times that.
        ways: how a device is reached.
        now_ns: Unix epoch.

    Raises:
        CallerError: what was found cannot be kept.
    """
    jobs: queue.SimpleQueue[tuple[Device, str, Way]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Reached, DeviceFacts | None]] = queue.SimpleQueue()
    left = {device.name: [name for name, _ in ways(device)] for device in devices}
    for device in devices:
        for name, way in ways(device):
            jobs.put((device, name, way))
    for _ in range(min(AT_ONCE, sum(map(len, left.values())))):
        threading.Thread(target=_work, args=(jobs, done, timeout_s), daemon=True, name="probe").start()
    by_name = {device.name: device for device in devices}
    came: dict[str, dict[str, tuple[Reached, DeviceFacts | None]]] = {name: {} for name in by_name}
    for name in [name for name, names in left.items() if not names]:
        del left[name]
        yield Probe(device=name, ways=(), probed_at_ns=now_ns())
    while left:
        name, reached, facts = done.get()
        came[name][reached.way] = (reached, facts)
        if len(came[name]) == len(left[name]):
            found = _joined(name, [came[name][way] for way in left.pop(name)], now_ns())
            _remember(by_name[name], found)
            yield found


def _work(
    jobs: queue.SimpleQueue[tuple[Device, str, Way]],
    done: queue.SimpleQueue[tuple[str, Reached, DeviceFacts | None]],
    timeout_s: float,
) -> None:
    while True:
        try:
            device, name, way = jobs.get_nowait()
        except queue.Empty:
            return
        begin = time.monotonic()
        found = _within(partial(way, device, timeout_s), _STEPS * timeout_s)
        took_s = time.monotonic() - begin
        if isinstance(found, Answer):
            done.put((device.name, Reached(way=name, note=found.note, took_s=took_s), found.facts))
        else:
            done.put((device.name, Reached(way=name, error=to_wire(found), took_s=took_s), None))


def _within(ask: Callable[[], Answer], limit_s: float) -> Answer | Exception:
    """What it answers, or what it raises; what does not end in time is left behind, as looking up a name may not."""
    found: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            found.put(ask())
        except Exception as error:  # noqa: BLE001  # one device's failure is its own
            found.put(error)

    threading.Thread(target=run, daemon=True, name="probe-way").start()
    try:
        return found.get(timeout=limit_s)
    except queue.Empty:
        return RequestTimeout(f"no answer within {limit_s:g} s; check power and network, or allow more with --timeout")


def _joined(name: str, came: Sequence[tuple[Reached, DeviceFacts | None]], now_ns: int) -> Probe:
    best = min(
        ((not facts_are_whole(facts), order) for order, (_, facts) in enumerate(came) if facts is not None),
        default=None,
    )
    reached, facts = came[best[1]] if best else (None, None)
    return Probe(
        device=name,
        ways=tuple(one for one, _ in came),
        facts=facts,
        way=reached.way if reached else "",
        probed_at_ns=now_ns,
    )


def facts_are_whole(facts: DeviceFacts) -> bool:
    """Whether ferryman itself told them, on the device."""
    return isinstance(facts.ferryman, str) and isinstance(facts.memory_bytes, int)


def _remember(device: Device, found: Probe) -> None:
    if found.facts is not None:
        known = Known(
            device=device.name,
            address=device.address,
            probed_at_ns=found.probed_at_ns,
            way=found.way,
            facts=found.facts,
        )
        remember(device, known)

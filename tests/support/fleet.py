"""Devices that answer at once: packages are read, and measurements made up from what they hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from ferryman.devices.fleet.inventory import Device, LocalDevice, SshDevice
from ferryman.devices.fleet.oracle import Hands, State
from ferryman.runtime.contracts.measurement import (
    Conditions,
    Measurement,
    Memory,
    MemoryPhases,
    ProfileSpec,
    Start,
)
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.package import open_package

NO = Unavailable(reason="not in this test")
LITERT = "ai-edge-litert"
BOTH = {LITERT: "2.3.0", "tflite-runtime": "2.14.0"}
LOCAL = LocalDevice()
BENCH = SshDevice(name="bench", host="bench.lan", user="pi")
STATE = State(BOTH, {"governor": "performance", "kernel": "6"})


def conditions(governor: str = "performance", kernel: str = "6") -> Conditions:
    return Conditions(
        device_model="board",
        cpu_model="core",
        cpu_count=1,
        isa=(),
        governor=governor,
        clocks_mhz=NO,
        temperatures_c=NO,
        load_1m=NO,
        memory_total_bytes=1,
        memory_available_bytes=1,
        kernel=kernel,
        machine="m",
        affinity=(0,),
        versions={},
    )


def memory(mb: int) -> Memory:
    return Memory(rss_bytes=mb * 10**6, pss_bytes=mb * 10**6, uss_bytes=mb * 10**6, peak_rss_bytes=mb * 10**6)


def start(*runs_ns: int) -> Start:
    return Start(
        process_ns=1_000_000,
        import_ns=2_000_000,
        load_ns=3_000_000,
        first_run_ns=4_000_000,
        warmup=Samples.of([9]),
        settled=True,
        samples=Samples.of(runs_ns),
    )


def measured(package: Path, spec: ProfileSpec, latency_ms: float) -> Measurement:
    """Of the spec's one variant on its one interpreter."""
    with open_package(package) as opened:
        sha256, manifest = opened.sha256, opened.manifest
    (variant,), (interpreter,) = spec.variants, spec.interpreters
    found = manifest.variant(variant)
    middle = round(latency_ms * 1e6)
    return Measurement(
        package_name=manifest.name,
        package_sha256=sha256,
        variant=variant,
        form=found.form,
        runtime=found.runtime,
        interpreter=interpreter,
        interpreter_version=BOTH[interpreter],
        artifact_bytes=next(one.size_bytes for one in manifest.payloads if one.path == found.payload),
        input_shapes=((1, 4),),
        spec=spec,
        started_at_ns=1,
        starts=(start(middle - 1000, middle, middle + 1000), start(middle, middle, middle)),
        memory=MemoryPhases(
            process=memory(10),
            start=memory(20),
            loaded=memory(21),
            first_run=memory(25),
            steady=memory(25),
            closed=memory(22),
            peak_rss_bytes=30 * 10**6,
            arena_bytes=NO,
        ),
        pipeline=NO,
        before=conditions(),
        after=conditions(),
    )


class Devices:
    """Hands for an oracle; tells what was done, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, str]] = []
        """What, on which device, with which package."""
        self.state = {LOCAL.name: STATE, BENCH.name: STATE}
        self.measure: Callable[[Path, Device, ProfileSpec], Measurement] = lambda package, _, spec: measured(
            package, spec, 2.0
        )
        self._lock = threading.Lock()

    @property
    def hands(self) -> Hands:
        return Hands(profile=self._profile, push=self._push, state=lambda device: self.state[device.name])

    def count(self, what: str) -> int:
        return sum(one[0] == what for one in self.done)

    def stand(self, **standing: str) -> None:
        """Change the state of this machine."""
        self.state[LOCAL.name] = State(BOTH, STATE.standing | standing)

    def _push(self, package: Path, device: Device) -> None:
        self._note("push", package, device)

    def _profile(self, package: Path, device: Device, spec: ProfileSpec, *, progress) -> tuple[Measurement, ...]:
        self._note("profile", package, device)
        stands = conditions(**self.state[device.name].standing)
        found = self.measure(package, device, spec)
        return (replace(found, before=stands, after=stands) if found.before == found.after else found,)

    def _note(self, what: str, package: Path, device: Device) -> None:
        with self._lock:
            self.done.append((what, device.name, Path(package).stem))

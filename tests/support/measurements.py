"""Measurements to store and show: a small one, one that fills every field, one with nothing that could be measured."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np

from ferryman.runtime.contracts.energy import Energy, EnergyEstimate, EnergySource, EnergyWindow, PowerModel
from ferryman.runtime.contracts.layers import Layer, LayerStatistics
from ferryman.runtime.contracts.measurement import (
    Arrival,
    Conditions,
    Gate,
    Interval,
    Measurement,
    Memory,
    MemoryPhases,
    Pipeline,
    ProfileSpec,
    Reading,
    Start,
)
from ferryman.runtime.contracts.operators import Operator, Operators, Peak
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from ferryman.runtime.contracts.samples import Samples

NO = Unavailable(reason="not in this test")
MEGABYTE = 1_000_000


def measurement(package_name: str = "digits", package_sha256: str = "00", started_at_ns: int = 1) -> Measurement:
    conditions = Conditions(
        device_model=NO,
        cpu_model=NO,
        cpu_count=1,
        isa=(),
        governor=NO,
        clocks_mhz=NO,
        temperatures_c=NO,
        load_1m=NO,
        memory_total_bytes=1,
        memory_available_bytes=1,
        kernel="k",
        machine="m",
        affinity=(0,),
        versions={},
    )
    return Measurement(
        package_name=package_name,
        package_sha256=package_sha256,
        variant="v",
        form="fp32",
        runtime="tflite",
        interpreter="i",
        interpreter_version="1",
        artifact_bytes=1,
        input_shapes=((1, 4),),
        spec=ProfileSpec(),
        started_at_ns=started_at_ns,
        starts=(start((3, 1, 2)),),
        memory=MemoryPhases(
            process=NO,
            start=NO,
            loaded=NO,
            first_run=NO,
            steady=NO,
            closed=NO,
            peak_rss_bytes=NO,
            arena_bytes=NO,
        ),
        pipeline=NO,
        energy=NO,
        before=conditions,
        after=conditions,
    )


def start(samples_ns, kept_max=1 << 24, **changes) -> Start:
    made = Start(
        process_ns=1,
        import_ns=1,
        load_ns=1,
        first_run_ns=1,
        warmup=Samples.of([1]),
        settled=True,
        samples=Samples.of(samples_ns, kept_max),
    )
    return msgspec.structs.replace(made, **changes)


def full_measurement(variant: str = "fp32-tflite", interpreter: str = "ai-edge-litert", factor: float = 1.0, seed=0):
    """Everything a device could measure: two processes, a sustained run that is throttled, energy, parts of the net.

    Args:
        variant: its name.
        interpreter: its name.
        factor: scales times and joules.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed)
    conditions = _conditions()
    return msgspec.structs.replace(
        measurement("digits", "9f86d081884c7d65" * 4, 1_790_000_000 * 10**9),
        variant=variant,
        interpreter=interpreter,
        interpreter_version="2.3.0",
        artifact_bytes=1_234_567,
        spec=ProfileSpec(starts=3, sustained_s=120, rate_hz=40, operators=True, layers=True, start_below_c=50),
        starts=tuple(_start(noise, factor, number) for number in range(3)),
        memory=_memory(),
        pipeline=_pipeline(noise, factor),
        arrival=_arrival(noise, factor),
        sustained=_sustained(noise, factor),
        energy=_energy(noise, factor),
        operators=_operators(noise, factor),
        layers=_layers(),
        before=conditions,
        after=msgspec.structs.replace(conditions, temperatures_c=(Reading(value=61.2, source="cpu-thermal"),)),
        cache="off",
        energy_estimate=EnergyEstimate(
            model=PowerModel(idle_w=2.7, core_w=1.1, source="a data sheet"), window_s=10.0, cpu_s=9.9, runs=800 / factor
        ),
    )


def bare_measurement() -> Measurement:
    """Whatever may be missing is; what was asked for and failed says so."""
    bare = measurement()
    missing = {field.name: NO for field in msgspec.structs.fields(Conditions) if isinstance(field.default, Unavailable)}
    conditions = msgspec.structs.replace(
        bare.before, **missing, memory_total_bytes=NO, memory_available_bytes=NO, isa=(), affinity=()
    )
    interval = Interval(
        start_s=0.0, seconds=1.0, samples=Samples.of([1, 2]), clocks_mhz=NO, temperatures_c=NO, throttled=NO, busy=NO,
        load_1m=NO, memory_available_bytes=NO, rss_bytes=NO,
    )  # fmt: skip
    return msgspec.structs.replace(
        bare, sustained=(interval,), operators=NO, layers=NO, before=conditions, after=conditions
    )


def _around(noise, median_ms: float, count: int) -> np.ndarray:
    """Durations in ns, with a tail."""
    factors = 1 + 0.01 * noise.standard_normal(count) + 0.08 * noise.pareto(4, count)
    return (median_ms * 1e6 * factors).astype(np.int64)


def _start(noise, factor: float, number: int) -> Start:
    warmup = _around(noise, 13.0 * factor, 30) + (8e6 * factor * np.exp(-np.arange(30) / 4)).astype(np.int64)
    return Start(
        process_ns=182_000_000 + number * 3_000_000,
        import_ns=95_000_000,
        load_ns=int(41_000_000 * factor),
        first_run_ns=int(24_000_000 * factor),
        warmup=Samples.of(warmup),
        settled=number != 1,
        samples=Samples.of(_around(noise, (12.4 + 0.05 * number) * factor, 400), kept_max=100 if number == 2 else 400),
        gate=Gate(
            below_c=50.0, waited_s=3.0, temperature_c=Reading(value=49.5, source="cpu-thermal"), opened=number != 2
        ),
        busy=0.02 + 0.05 * number,
    )


def _memory() -> MemoryPhases:
    def at(private: float, file: float, peak: float) -> Memory:
        return Memory(
            rss_bytes=int((private + file * 1.4) * MEGABYTE),
            pss_bytes=int((private + file) * MEGABYTE),
            uss_bytes=int((private + file * 0.8) * MEGABYTE),
            peak_rss_bytes=int(peak * MEGABYTE),
            anonymous_bytes=int(private * MEGABYTE),
            file_bytes=int(file * MEGABYTE),
        )

    return MemoryPhases(
        process=at(17, 9, 31),
        start=at(24, 21, 55),
        loaded=at(29, 23, 71),
        first_run=at(34.5, 23.5, 73),
        steady=at(34.6, 23.5, 73),
        closed=at(26.1, 21.2, 73),
        peak_rss_bytes=73 * MEGABYTE,
        arena_bytes=int(2.4 * MEGABYTE),
    )


def _pipeline(noise, factor: float) -> Pipeline:
    model = _around(noise, 12.2 * factor, 100)
    return Pipeline(whole=Samples.of(model + 180_000), model=Samples.of(model))


def _arrival(noise, factor: float) -> Arrival:
    service = _around(noise, 12.5 * factor, 400)
    free, latency = 0, []
    for index, took in enumerate(service.tolist()):
        free = max(index * 25_000_000, free) + took
        latency.append(free - index * 25_000_000)
    return Arrival(rate_hz=40.0, latency=Samples.of(latency), service=Samples.of(service), behind=factor > 2)


def _sustained(noise, factor: float) -> tuple[Interval, ...]:
    def interval(index: int) -> Interval:
        hot = max(0.0, 1 - math.exp(-(index - 2) / 8)) if index > 2 else 0.0
        slow = 1.0 + (0.45 if index >= 12 else 0.0)
        clocks = tuple((1500.0 if index >= 12 else 2400.0) + 10 * core for core in range(4))
        return Interval(
            start_s=5.0 * index,
            seconds=5.0,
            samples=Samples.of(_around(noise, 12.4 * factor * slow, 150)),
            clocks_mhz=clocks,
            temperatures_c=(Reading(value=52 + 31 * hot, source="cpu-thermal"), Reading(value=48.0, source="nvme")),
            throttled=("frequency capped", "soft temperature limit") if index >= 12 else (),
            busy=0.6 if index == 7 else 0.03,
            load_1m=1.0 + 0.02 * index,
            memory_available_bytes=3_400 * MEGABYTE,
            rss_bytes=int((66 + 0.1 * index) * MEGABYTE),
        )

    return tuple(interval(index) for index in range(24))


def _energy(noise, factor: float) -> Energy:
    def window(watts: float, runs: float) -> EnergyWindow:
        times = np.arange(101) * 100_000_000
        values = watts * (1 + 0.02 * noise.standard_normal(101))
        joules = float(np.sum((values[1:] + values[:-1]) / 2) * 0.1)
        return EnergyWindow(
            energy_j=joules, window_s=10.0, runs=runs, times_ns=tuple(times.tolist()), values=tuple(values.tolist())
        )

    return Energy(
        source=EnergySource(
            name="Raspberry Pi 5 PMIC", rails=("VDD_CORE", "DDR_VDD2"), unit="W", resolution=0.001, renewed_s=NO,
            uncertainty=0.02, note="losses of the PMIC and the USB ports are not covered",
        ),
        active=window(5.6, 800 / factor),
        idle=window(2.4, 0),
        error_j=0.0012 * factor,
        net_error_j=0.0019 * factor,
    )  # fmt: skip


def _operators(noise, factor: float) -> Operators:
    rows = [
        ("conv_2d", "conv2d", "features.0.conv", "xnnpack", 3.4, 900_000, 90_000_000, ()),
        ("transpose", "transpose", None, None, 1.3, 800_000, 0, ("undelegated", "layout copy")),
        ("depthwise_conv_2d", "depthwise_conv2d", "features.3.conv", "xnnpack", 2.1, 1_300_000, 12_000_000, ()),
        ("conv_2d", "conv2d", "features.6.conv", "ferryman", 2.9, 2_000_000, 120_000_000, ()),
        ("gelu", "gelu", "features.7", None, 0.9, 640_000, None, ("undelegated",)),
        ("fully_connected", "linear", "classifier.1", "xnnpack", 1.2, 5_100_000, 1_280_000, ()),
        *(("add", "add", f"features.{n}.add", "xnnpack", 0.03, 200_000, 0, ()) for n in range(8, 24)),
    ]
    total = sum(row[4] for row in rows)
    return Operators(
        source="each operator alone, in an interpreter of its own",
        rows=tuple(
            Operator(
                name=name, kind=kind, module=module, delegate=delegate, share=ms / total, bytes_moved=moved, macs=macs,
                flags=flags, samples=Samples.of(_around(noise, ms * factor, 50)),
            )
            for name, kind, module, delegate, ms, moved, macs, flags in rows
        ),
        whole=Samples.of(_around(noise, 12.6 * factor, 50)),
        peak=Peak(gmacs_per_s=48.0, gbytes_per_s=11.5, int8_gmacs_per_s=150.0, cache_gbytes_per_s=60.0),
    )  # fmt: skip


def _layers() -> LayerStatistics:
    def layer(index: int) -> Layer:
        top = 6.0 if index % 3 else 1.0 + index
        return Layer(
            name=f"relu_{index}", module=f"features.{index}.act", shape=(1, 16, 32, 32),
            dtype="float32" if index % 2 else "int8", least=0.0 if index else -2.5, most=top, mean=top / 5, std=top / 4,
            zeros=min(0.95, 0.08 * index), saturated=0.12 if index == 5 else 0.001 * index,
            information_bits=3.2 - 0.2 * index if index < 8 else NO,
        )  # fmt: skip

    return LayerStatistics(source="taps on the interpreter's tensors", inputs=16, rows=tuple(map(layer, range(10))))


def _conditions() -> Conditions:
    return Conditions(
        device_model="Raspberry Pi 5 Model B Rev 1.0",
        cpu_model="Cortex-A76",
        soc="brcm,bcm2712",
        cpu_count=4,
        isa=("asimd", "asimddp"),
        governor="ondemand",
        clocks_mhz=(2400.0,) * 4,
        temperatures_c=(Reading(value=49.5, source="cpu-thermal"),),
        throttled=("under voltage before",),
        power_source="mains",
        load_1m=0.31,
        memory_total_bytes=8_000 * MEGABYTE,
        memory_available_bytes=6_500 * MEGABYTE,
        kernel="6.12.25+rpt-rpi-2712",
        machine="aarch64",
        affinity=(0, 1, 2, 3),
        versions={"ferryman": "0.1.0", "python": "3.11.2", "numpy": "2.4.6", "ai-edge-litert": "2.3.0"},
    )


def damaged(whole: Measurement, changes: list[tuple[int, float]]) -> Measurement | None:
    """The record with some of its numbers replaced: the n-th number, by a value; None where the contract refuses it."""
    tree = json.loads(encode(whole))
    places: list[tuple[Any, Any]] = []
    _numbers(tree, places)
    for at, value in changes:
        holder, key = places[at % len(places)]
        holder[key] = int(value) if isinstance(holder[key], int) else value
    try:
        return decode(json.dumps(tree).encode(), Measurement)
    except ValueError:
        return None


def _numbers(tree: Any, places: list[tuple[Any, Any]]) -> None:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        if type(value) in {int, float}:
            places.append((tree, key))
        _numbers(value, places)

"""Networks of a few bits beside fp32 and the stock toolchains' static int8: bytes, latency, on both runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import Captured, capture
from ferryman.converter.forms import find_form
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.session import Session, open_session
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.benchmarks.int8 import int8_pte, int8_tflite
from tests.benchmarks.kernels_layers import NAMES, RUNTIMES
from tests.zoo import models

_ROUNDS = 60
_SAMPLE_S = 0.002
FORMS = ("int8", "4bit", "2bit")


@dataclass(frozen=True)
class Network:
    """One of the notes' networks."""

    name: str
    module: torch.nn.Module
    x: torch.Tensor
    images: bool

    @property
    def forms(self) -> tuple[str, ...]:
        """Beside fp32."""
        return FORMS if self.images else (*FORMS, "int8-blocks", "4bit-blocks")


def networks() -> Iterator[Network]:
    """ResNet-20, MobileNetV2 and a 6-block decoder, with random weights."""
    module, (x,) = models.resnet20()
    yield Network("ResNet-20", module, x[:1], images=True)
    module, (x,) = models.mobilenet_v2_full()
    yield Network("MobileNetV2", module, x, images=True)
    module, (x,) = models.decoder_of_six()
    yield Network("decoder", module, x, images=False)


SMALL = {"ResNet-20": 0.16, "MobileNetV2": 0.16, "decoder": 0.15}
SIZES = {
    (name, runtime): Goal(f"{name}, 4-bit, bytes over fp32's on {NAMES[runtime]}", "<=", most)
    for name, most in SMALL.items()
    for runtime in RUNTIMES
}
FASTER = {
    (name, runtime): Goal(f"{name}, 4-bit, times as fast as fp32 on {NAMES[runtime]}", ">", 1.0)
    for name in ("ResNet-20", "MobileNetV2")
    for runtime in RUNTIMES
}
NEAR = {
    (name, runtime): Goal(f"{name}, 4-bit, time over stock static int8's on {NAMES[runtime]}", "<=", 1.1)
    for name in ("ResNet-20", "MobileNetV2")
    for runtime in RUNTIMES
}
FEWER = {
    (name, runtime): Goal(f"{name}, 2-bit, time over 4-bit's on {NAMES[runtime]}", "<=", 1.0)
    for name in SMALL
    for runtime in RUNTIMES
}


def measure() -> Iterator[Bar | Figure]:
    """Every network on both runtimes, one thread."""
    for network in networks():
        with tempfile.TemporaryDirectory() as folder:
            progress(f"{network.name}: lowering")
            files = artifacts(network, Path(folder))
            for runtime in RUNTIMES:
                progress(f"{network.name} on {NAMES[runtime]}")
                yield from _beside(network, runtime, files)


def artifacts(network: Network, folder: Path) -> dict[tuple[str, str], Path]:
    """The network in every form: (runtime, form) -> file."""
    made = {}
    with quiet():
        captured = capture(make_source(network.module, (network.x,)))
        programs: dict[str, Captured] = {"fp32": captured}
        programs |= {form: find_form(form).rewrite(captured, [captured.example])[0] for form in network.forms}
        for runtime in RUNTIMES:
            for form, program in programs.items():
                path = folder / f"{form}{BACKENDS[runtime].suffix}"
                path.write_bytes(BACKENDS[runtime].lower(program).data)
                made[runtime, form] = path
        if network.images:
            made["executorch", "stock int8"] = int8_pte(network.module, network.x, folder / "stock.pte")
            made["tflite", "stock int8"] = int8_tflite(made["tflite", "fp32"], network.x, folder / "stock.tflite")
    return made


def _beside(network: Network, runtime: str, files: dict[tuple[str, str], Path]) -> Iterator[Bar | Figure]:
    there = {form: path for (on, form), path in files.items() if on == runtime}
    with ExitStack() as stack:
        sessions = {form: stack.enter_context(open_session(path, runtime, threads=1)) for form, path in there.items()}  # type: ignore[arg-type]  # a runtime
        times = dict(zip(sessions, timed(list(sessions.values()), network.x.numpy()), strict=True))
    name, where = network.name, f"{network.name} on {NAMES[runtime]}"
    yield SIZES[name, runtime].measured([there["4bit"].stat().st_size / there["fp32"].stat().st_size])
    if network.images:
        yield FASTER[name, runtime].measured(times["fp32"] / times["4bit"])
        yield NEAR[name, runtime].measured(times["4bit"] / times["stock int8"])
    yield FEWER[name, runtime].measured(times["2bit"] / times["4bit"])
    for form, seconds in times.items():
        yield figure(f"  {where}: {form}", seconds * 1e6, "us")
    for form in network.forms:
        yield figure(
            f"  {where}: {form}, bytes over fp32's", [there[form].stat().st_size / there["fp32"].stat().st_size]
        )
        yield figure(f"  {where}: {form}, times as fast as fp32", times["fp32"] / times[form])


def timed(sessions: Sequence[Session], x: np.ndarray) -> np.ndarray:
    """Seconds a call: [session, round]."""
    works = []
    for session in sessions:
        inputs = [x.astype(session.signature.inputs[0].dtype)]
        session.run(inputs)
        calls = max(1, round(_SAMPLE_S / seconds_of(lambda s=session, i=inputs: s.run(i))))

        def run(session: Session = session, inputs: list[np.ndarray] = inputs, calls: int = calls) -> float:
            def work() -> None:
                for _ in range(calls):
                    session.run(inputs)

            return seconds_of(work) / calls

        works.append(run)
    interleave(5, *works)
    return interleave(_ROUNDS, *works)


PARTS = (Part((*SIZES.values(), *FASTER.values(), *NEAR.values(), *FEWER.values()), measure),)

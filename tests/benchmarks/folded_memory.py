"""A decoder of one block used six times beside one of six blocks: bytes, private memory, starts, on every interpreter.

The 4-bit form is run by ferryman's kernels, which read weights where they lie in the mapped artifact: nothing is
packed, so nothing is kept. Activations, as many in both, are the rest: as much as the weights of a 4-bit decoder 256
wide, so its private memory is a figure, and the bar is for one 512 wide.
A start is what opening and the first run take beyond a later run; the first with a cache packs, tries out, and writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.forms import find_form
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.session import Session, open_session
from ferryman.runtime.sessions import executorch
from ferryman.runtime.sessions.tflite import TfliteSession
from tests.benchmarks import folded_start
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.kernels_layers import NAMES, RUNTIMES
from tests.benchmarks.pruned_layers import PLACES, place_of
from tests.benchmarks.quantized_networks import timed
from tests.zoo import models

FORMS = ("fp32", "4bit")
WIDE = "512 wide"
KEEPING = ("executorch", "ai-edge-litert")
"""Interpreters that can pack shared weights once, and keep them."""
_ROUNDS = 5
_MEMORY_ROUNDS = 3
_LEAST_S = 1e-5
_SETTLED_S = 2.5
"""A file changed less than two seconds ago is not trusted to stay as it is."""

BYTES = {
    (form, runtime): Goal(f"one block six times, {form}, bytes over six blocks' on {NAMES[runtime]}", "<=", 0.45)
    for form in FORMS
    for runtime in RUNTIMES
}
WIRE = {
    (form, runtime): Goal(f"one block six times, {form}, compressed over one block's on {NAMES[runtime]}", "<=", 1.1)
    for form in FORMS
    for runtime in RUNTIMES
}
MEMORY = {
    (form, place): Goal(f"one block six times, {form}, {what} over six blocks' on {place}", "<=", 0.55)
    for form, what in (("fp32", "private memory"), (f"4bit, {WIDE}", "private memory"))
    for place in KEEPING
}
STARTS = {
    (name, place): Goal(f"{name}, fp32, second start, times as fast as the first on {place}", ">=", 4.0)
    for name in ("six blocks", "one block six times")
    for place in KEEPING
}
STEADY = {
    place: Goal(f"one block six times, fp32, a run with kept weights over one without on {place}", "<=", 1.03)
    for place in KEEPING
}


@dataclass(frozen=True)
class Decoders:
    """Artifacts, and an input."""

    folder: Path
    x: np.ndarray

    def path(self, name: str, form: str, runtime: str) -> Path:
        return self.folder / f"{name}-{form}{BACKENDS[runtime].suffix}"  # type: ignore[index]  # a runtime

    @property
    def input_path(self) -> Path:
        return self.folder / "x.npy"


def decoder(name: str) -> nn.Module:
    """256 wide, 4096 tokens, 64 long; `warm` is a small one of the same operators."""
    torch.manual_seed(3)
    if name == "warm":
        return models.Decoder(64, 32, 1, 64).eval()
    module = models.Decoder(4096, 512 if WIDE in name else 256, 1 if name == "one block" else 6, 64)
    if name.startswith("one block six times"):
        module.blocks = nn.Sequential(*[module.blocks[0]] * 6)
    return module.eval()


def make(folder: Path) -> Decoders:
    """Lower them all."""
    x = torch.randint(0, 4096, (1, 64))
    made = Decoders(folder, x.numpy())
    np.save(made.input_path, made.x)
    for name in ("six blocks", "one block six times", "one block", "warm"):
        progress(f"lowering {name}")
        with quiet():
            captured = capture(make_source(decoder(name), (x % 64 if name == "warm" else x,)))
            programs = {"fp32": captured, "4bit": find_form("4bit").rewrite(captured, [captured.example])[0]}
            for form in FORMS:
                for runtime in RUNTIMES:
                    made.path(name, form, runtime).write_bytes(BACKENDS[runtime].lower(programs[form]).data)  # type: ignore[index]  # a runtime
    for name in (f"six blocks, {WIDE}", f"one block six times, {WIDE}"):
        progress(f"lowering {name}, 4bit")
        with quiet():
            captured = capture(make_source(decoder(name), (x,)))
            program = find_form("4bit").rewrite(captured, [captured.example])[0]
            for runtime in RUNTIMES:
                made.path(name, "4bit", runtime).write_bytes(BACKENDS[runtime].lower(program).data)  # type: ignore[index]  # a runtime
    time.sleep(_SETTLED_S)
    return made


def measure() -> Iterator[Bar | Figure]:
    """Bytes, then memory, starts and runs in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        yield from _bytes(made)
        for form, wide in (("fp32", ""), ("4bit", ""), ("4bit", f", {WIDE}")):
            for place in PLACES:
                progress(f"memory, {form}{wide} on {place}")
                yield from _memory(made, form, place, wide)
        for place in KEEPING:
            for name in ("six blocks", "one block six times"):
                progress(f"starts of {name} on {place}")
                yield from _starts(made, name, place)
            yield from _steady(made, place)


def _bytes(made: Decoders) -> Iterator[Bar | Figure]:
    for (form, runtime), goal in BYTES.items():
        six, folded, one = (
            made.path(name, form, runtime).read_bytes() for name in ("six blocks", "one block six times", "one block")
        )
        wire = {data: len(zlib.compress(data, 9)) for data in (six, folded, one)}
        yield goal.measured([len(folded) / len(six)])
        yield WIRE[form, runtime].measured([wire[folded] / wire[one]])
        where = f"{form} on {NAMES[runtime]}"
        yield figure(f"  {where}: six blocks", [len(six) / 1e6], "MB")
        yield figure(f"  {where}: one block six times", [len(folded) / 1e6], "MB")
        yield figure(f"  {where}: one block six times, compressed over six blocks'", [wire[folded] / wire[six]])


def start(made: Decoders, name: str, form: str, place: str, cache: Path | None = None) -> dict[str, Any]:
    """What `folded_start` says of one start.

    Raises:
        CannotRun: the interpreter is not here.
    """
    runtime = PLACES[place]
    paths = [made.path(name, form, runtime), made.input_path, made.path("warm", form, runtime)]
    command = [place_of(place).python or sys.executable, "-P", folded_start.__file__, place, *paths]
    done = subprocess.run([*command, *([cache] if cache else [])], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _memory(made: Decoders, form: str, place: str, wide: str) -> Iterator[Bar | Figure]:
    goal = MEMORY.get((form + wide, place))
    try:
        found = {
            name: [start(made, name + wide, form, place) for _ in range(_MEMORY_ROUNDS)]
            for name in ("six blocks", "one block six times")
        }
    except CannotRun as error:
        if goal is not None:
            yield goal.not_run(str(error))
        return
    six, folded = (
        {key: np.array([one[key] for one in found[name]]) / 1e6 for key in ("private", "weights")} for name in found
    )
    ratios = {key: folded[key] / six[key] for key in six}
    if goal is not None:
        yield goal.measured(ratios["private"])
    else:
        yield figure(f"  {form}{wide} on {place}: private memory over six blocks'", ratios["private"])
    for name, held in (("six blocks", six), ("one block six times", folded)):
        yield figure(f"  {form}{wide} on {place}: {name}, private", held["private"], "MB")
        yield figure(f"  {form}{wide} on {place}: {name}, of that in maps of weights", held["weights"], "MB")


def _starts(made: Decoders, name: str, place: str) -> Iterator[Bar | Figure]:
    kinds: dict[str, list[dict[str, Any]]] = {"no cache": [], "first": [], "second": []}
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            kinds["no cache"].append(start(made, name, "fp32", place))
            for kind, use in (("first", "built"), ("second", "warm")):
                kinds[kind].append(start(made, name, "fp32", place, Path(folder) / "cache"))
                assert kinds[kind][-1]["cache"] == use, kinds[kind][-1]
    seconds = {kind: np.array([one["open_s"] + one["first_s"] for one in all_]) for kind, all_ in kinds.items()}
    opened = {kind: np.array([one["open_s"] for one in all_]) for kind, all_ in kinds.items()}
    later = np.array([one["later_s"] for one in kinds["second"]])
    more = {kind: np.maximum(seconds[kind] - later, _LEAST_S) for kind in kinds}
    yield STARTS[name, place].measured(more["first"] / more["second"])
    where = f"{name}, fp32 on {place}"
    for kind in kinds:
        yield figure(f"  {where}: {kind}: open and first run", seconds[kind] * 1e3, "ms")
        yield figure(f"  {where}: {kind}: open alone", opened[kind] * 1e3, "ms")
    yield figure(f"  {where}: a later run", later * 1e3, "ms")
    yield figure(f"  {where}: second start, times as fast as without a cache", more["no cache"] / more["second"])
    private = {kind: np.array([one["private"] for one in all_]) / 1e6 for kind, all_ in kinds.items()}
    yield figure(f"  {where}: second start: private", private["second"], "MB")


def _steady(made: Decoders, place: str) -> Iterator[Bar | Figure]:
    path = made.path("one block six times", "fp32", PLACES[place])
    with tempfile.TemporaryDirectory() as folder:
        open_session(path, PLACES[place], interpreter=place, cache=folder).close()
        kept = open_session(path, PLACES[place], interpreter=place, cache=folder)
        plain: Session = (
            executorch.ExecutorchSession(executorch._native(), path, 1)
            if place == "executorch"
            else TfliteSession(path, place, 1)
        )
        with kept, plain:
            with_, without = timed([kept, plain], made.x)
    yield STEADY[place].measured(with_ / without)
    yield figure(f"  one block six times, fp32 on {place}: a run with kept weights", with_ * 1e3, "ms")


PARTS = (
    Part(
        (*BYTES.values(), *WIRE.values(), *MEMORY.values(), *STARTS.values(), *STEADY.values()),
        measure,
    ),
)

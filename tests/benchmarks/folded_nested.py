"""A nested decoder in five variants: what the package costs, and what it takes a device to go from one to another."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import Captured, capture
from ferryman.converter.forms import find_form
from ferryman.converter.nested.network import nest
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.verify import make_references
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.tensor import pack
from ferryman.runtime.session import INTERPRETERS
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.pruned_layers import PLACES, place_of
from tests.zoo import models

FORM = "nested-12-25-50-75-100"
_ROUNDS = 40
_STARTS = 5
_MS = 50.0
BYTES = {
    runtime: Goal(f"{runtime}: artifact of five variants, bytes over the largest's own", "<=", 1.1)
    for runtime in INTERPRETERS
}
PACKAGE = Goal("package of five variants for both runtimes, bytes over the largest's own", "<=", 1.1)
SWITCH = {
    name: Goal(f"{name}: from one variant to another, to the end of its first call", "<=", _MS, "ms")
    for name in ("executorch", "ai-edge-litert")
}
MEMORY = {
    name: Goal(f"{name}: private memory after all five in turn over after the largest as often", "<=", 1.1)
    for name in ("executorch", "ai-edge-litert")
}

_WALK = """
import json, sys, time
from pathlib import Path
import numpy as np
from ferryman.runtime.memory import read_memory
from ferryman.runtime.session import import_interpreter, open_session
artifact, runtime, interpreter, cache, entries, inputs = json.loads(sys.argv[1])
import_interpreter(interpreter)
given = [np.array(one, kind) for one, kind in inputs]
def run(entry):
    session = open_session(artifact, runtime, interpreter=interpreter, entry=entry, cache=cache)
    session.run(given)
    return session
before = read_memory().uss_bytes
session, seconds = run(entries[0]), []
for entry in entries[1:]:
    start = time.perf_counter()
    session.close()
    session = run(entry)
    seconds.append(time.perf_counter() - start)
print(json.dumps([read_memory().uss_bytes - before, seconds]))
"""
"""Opens and runs entries one after another in a fresh process, each time after the one before is closed."""


def _walk(
    name: str, artifact: Path, cache: Path, entries: list[str], inputs: list[np.ndarray]
) -> tuple[int, list[float]]:
    """Bytes that are the process's own at the end, beyond those before the first; seconds of each change."""
    given = [(one.tolist(), one.dtype.name) for one in inputs]
    task = json.dumps([str(artifact), PLACES[name], name, str(cache), entries, given])
    done = subprocess.run(
        [place_of(name).python, "-P", "-c", _WALK, task], stdout=subprocess.PIPE, check=True, text=True
    )
    grown, seconds = json.loads(done.stdout.splitlines()[-1])
    return grown, seconds


def _captured() -> tuple[Captured, dict[str, Captured]]:
    """The decoder as it is, and its sub-networks."""
    module, inputs = models.decoder_of_six()
    found = nest(module, FORM, example=inputs)
    with quiet():
        return capture(make_source(module, inputs)), {
            name: capture(make_source(one, inputs)) for name, one in found.variants().items()
        }


def measure() -> Iterator[Bar | Figure]:
    """Random weights."""
    whole, variants = _captured()
    with tempfile.TemporaryDirectory() as folder:
        for form in ("fp32", "4bit"):
            yield from _form(form, whole, variants, Path(folder))
            ratio = _package(form, whole, variants, Path(folder))
            yield PACKAGE.measured([ratio]) if form == "fp32" else figure(f"  {form}: the same of a package", [ratio])


def _package(form: str, whole: Captured, variants: dict[str, Captured], folder: Path) -> float:
    """With golden vectors, as convert writes them: those of the first variant, and one of each other."""
    first, *others = (make_references(one).golden() for one in variants.values())
    bytes_ = {
        what: sum((folder / f"{form}-{what}{BACKENDS[runtime].suffix}").stat().st_size for runtime in INTERPRETERS)
        + sum(len(pack(vector)) for vector in vectors)
        for what, vectors in (
            ("alone", make_references(whole).golden()),
            ("together", (*first, *(vectors[0] for vectors in others))),
        )
    }
    return bytes_["together"] / bytes_["alone"]


def _form(form: str, whole: Captured, variants: dict[str, Captured], folder: Path) -> Iterator[Bar | Figure]:
    rewrite = find_form(form).rewrite
    for runtime in INTERPRETERS:
        progress(f"{form} for {runtime}")
        backend = BACKENDS[runtime]
        with quiet():
            alone = backend.lower(rewrite(whole, [whole.example])[0]).data
            together = backend.lower_entries({name: rewrite(one, [one.example])[0] for name, one in variants.items()})
        paths = [folder / f"{form}-{what}{backend.suffix}" for what in ("alone", "together")]
        for path, data in zip(paths, (alone, next(iter(together.values())).data), strict=True):
            path.write_bytes(data)
        ratio = paths[1].stat().st_size / paths[0].stat().st_size
        if form == "fp32":
            yield BYTES[runtime].measured([ratio])
        else:
            yield figure(f"  {runtime}: the same in {form}", [ratio])
        for name in INTERPRETERS[runtime]:
            progress(f"{form} on {name}")
            try:
                yield from _place(form, name, paths, list(variants), whole, folder)
            except CannotRun as error:
                yield from (goal[name].not_run(str(error)) for goal in (SWITCH, MEMORY) if name in goal)


def _place(
    form: str, name: str, paths: list[Path], entries: list[str], whole: Captured, folder: Path
) -> Iterator[Bar | Figure]:
    inputs = [one.numpy() for one in whole.example]
    if PLACES[name] == "tflite":
        inputs = [one.astype(np.int32) for one in inputs]
    cache = folder / f"cache-{form}-{name}"
    _walk(name, paths[1], cache, entries, inputs)  # fills the cache
    turn = [*entries, *entries[::-1]]  # the largest first, and last
    walks = [_walk(name, paths[1], cache, turn, inputs) for _ in range(_STARTS)]
    largest = [_walk(name, paths[1], cache, entries[:1] * len(turn), inputs)[0] for _ in range(_STARTS)]
    switches = [second * 1e3 for _, seconds in walks for second in seconds]
    grown = np.array([bytes_ for bytes_, _ in walks]) / np.median(largest)
    if form == "fp32" and name in SWITCH:
        yield SWITCH[name].measured(switches)
    else:
        yield figure(f"  {name}: {form}, from one variant to another", switches, "ms")
    if form == "fp32" and name in MEMORY:
        yield MEMORY[name].measured(grown)
    else:
        yield figure(f"  {name}: {form}, private memory after all five in turn over after the largest as often", grown)
    yield figure(f"  {name}: {form}, private memory after the largest alone", np.array(largest) / 1e6, "MB")
    times = np.array(
        time_beside(
            [paths[0], *[paths[1]] * len(entries)], name, [inputs] * (1 + len(entries)), entries=[None, *entries],
            rounds=_ROUNDS, python=place_of(name).python,
        )
    )  # fmt: skip
    for entry, row in zip(entries, times[1:], strict=True):
        yield figure(f"  {name}: {form}, {entry} %, times as fast as the whole in one part", times[0] / row)


PARTS = (Part((*BYTES.values(), PACKAGE, *SWITCH.values(), *MEMORY.values()), measure),)

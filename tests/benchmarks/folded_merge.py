"""VanillaNet with its layers merged beside itself as trained, on every interpreter: the same answers, sooner."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.fold.merge import merge
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.beside import time_beside
from ferryman.runtime.session import INTERPRETERS, open_session
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.pruned_layers import PLACES, place_of
from tests.zoo.folded_nets import vanillanet11

_ROUNDS = 40
_FASTER, _SAME = 1.5, 1e-4
FASTER = {name: Goal(f"VanillaNet, merged, times as fast on {name}", ">=", _FASTER) for name in PLACES}
SAME = {
    runtime: Goal(f"VanillaNet, merged, largest difference of an answer in {runtime}", "<=", _SAME)
    for runtime in INTERPRETERS
}


def measure() -> Iterator[Bar | Figure]:
    """Both networks' artifacts in turn, one thread; batch norms are folded by the toolchains in both."""
    module, (image,) = vanillanet11()
    progress("VanillaNet: merging and lowering")
    artifacts: dict[str, list[bytes]] = {runtime: [] for runtime in INTERPRETERS}
    with quiet():
        merged = merge(module, image)
        for model in (module, merged.model):
            captured = capture(make_source(model, (image,)))
            for runtime in INTERPRETERS:
                artifacts[runtime].append(BACKENDS[runtime].lower(captured).data)
    before, after = merged.layers
    yield figure("  VanillaNet: layers as trained", [before])
    yield figure("  VanillaNet: layers merged", [after])
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, list[Path]] = {}
        for runtime, both in artifacts.items():
            paths[runtime] = [Path(folder) / f"{at}{BACKENDS[runtime].suffix}" for at in range(len(both))]
            for path, data in zip(paths[runtime], both, strict=True):
                path.write_bytes(data)
            yield figure(f"  VanillaNet: bytes over those as trained in {runtime}", [len(both[1]) / len(both[0])])
            yield SAME[runtime].measured([_apart(paths[runtime], runtime, image)])
        for name, runtime in PLACES.items():
            progress(f"VanillaNet on {name}")
            try:
                place = place_of(name)
            except CannotRun as error:
                yield FASTER[name].not_run(str(error))
                continue
            inputs = [[image.numpy()]] * 2
            times = np.array(time_beside(paths[runtime], name, inputs, rounds=_ROUNDS, bare=True, python=place.python))
            yield FASTER[name].measured(times[0] / times[1])
            yield figure(f"  VanillaNet on {name}: as trained", times[0] * 1e3, "ms")
            yield figure(f"  VanillaNet on {name}: merged", times[1] * 1e3, "ms")


def _apart(paths: list[Path], runtime: str, image: torch.Tensor) -> float:
    """Over the largest answer."""
    answers = []
    for path in paths:
        with open_session(path, runtime, threads=1) as session:  # type: ignore[arg-type]  # a runtime
            answers.append(np.array(session.run([image.numpy()])[0]))
    return float(np.abs(answers[0] - answers[1]).max() / np.abs(answers[0]).max())


PARTS = (Part((*SAME.values(), *FASTER.values()), measure),)


if __name__ == "__main__":
    from tests.benchmarks.frame import main

    main("folded_merge", PARTS)

"""Time artifacts in turn, in one process: how much faster one is than another does not hang on the moment.

    python -m ferryman.runtime.beside INTERPRETER ROUNDS run|call NPZ COUNTS ENTRIES ARTIFACT...

prints JSON: seconds[artifact][round], of the session's run or of the runtime's own call within it.
The inputs are the arrays of NPZ, in order, as many for each artifact as COUNTS says; ENTRIES is a JSON list of
each artifact's entry or null. Artifacts are run that have been proven; the process may crash all the same.
"""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ferryman.runtime.contracts.errors import RuntimeCrash
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.session import INTERPRETERS, open_session

_TIMEOUT_S = 300.0
_SAMPLE_S = 0.002
"""What a sample takes at least, several calls if one is shorter."""
_BUDGET_S = 6.0


def time_beside(
    artifacts: Sequence[Path],
    interpreter: str,
    inputs: Sequence[Sequence[Array]],
    *,
    rounds: int = 40,
    bare: bool = False,
    entries: Sequence[str | None] | None = None,
    python: Path | None = None,
) -> list[list[float]]:
    """Seconds a call of each artifact in each round, one thread, the order turned around every other round.

    Args:
        artifacts: that `interpreter` runs.
        interpreter: one of INTERPRETERS' names.
        inputs: of one call, of each artifact.
        rounds: at most; slow artifacts are given fewer.
        bare: time the runtime's own call, without copying inputs and outputs, as within a larger program.
        entries: what to run of each artifact, see `open_session`; None: of each the default.
        python: of the environment that has the interpreter; None: this one.

    Raises:
        RuntimeCrash: the process ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, *(array for several in inputs for array in several))
        counts = ",".join(str(len(several)) for several in inputs)
        command = [
            python or sys.executable,
            "-P",
            "-m",
            "ferryman.runtime.beside",
            interpreter,
            str(rounds),
            "call" if bare else "run",
            path,
            counts,
            json.dumps(list(entries or [None] * len(artifacts))),
        ]
        try:
            done = subprocess.run(
                [*map(str, command), *map(str, artifacts)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeCrash(f"{interpreter} did not finish being timed within {_TIMEOUT_S:g} s") from error
    if done.returncode:
        raise RuntimeCrash(f"{interpreter} could not be timed: {done.stderr.strip()[-500:]}")
    found: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main(
    interpreter: str, rounds: str, how: str, inputs_path: str, input_counts: str, entries: str, *artifacts: str
) -> None:
    runtime: RuntimeName = next(name for name, names in INTERPRETERS.items() if interpreter in names)
    with np.load(inputs_path) as held:
        arrays = iter([held[name] for name in held.files])
    inputs = [list(itertools.islice(arrays, int(count))) for count in input_counts.split(",")]
    sessions = [
        open_session(path, runtime, interpreter=interpreter, entry=entry)
        for path, entry in zip(artifacts, json.loads(entries), strict=True)
    ]
    calls: list[Callable[[], object]] = []
    counts = []
    for session, own in zip(sessions, inputs, strict=True):
        session.run(own)
        bare: Callable[[], object] = session._call  # type: ignore[attr-defined]  # noqa: SLF001  # both kinds have it
        calls.append(bare if how == "call" else functools.partial(session.run, own))
        start = time.perf_counter()
        calls[-1]()
        counts.append(max(1, round(_SAMPLE_S / max(time.perf_counter() - start, 1e-9))))
    seconds: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + _BUDGET_S
    for turn in range(int(rounds)):
        order = range(len(sessions))
        for index in order if turn % 2 == 0 else reversed(order):
            start = time.perf_counter()
            for _ in range(counts[index]):
                calls[index]()
            seconds[index].append((time.perf_counter() - start) / counts[index])
        if time.perf_counter() > end:
            break
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""One start of an artifact in a process of its own: `python folded_start.py INTERPRETER ARTIFACT INPUT WARM [CACHE]`.

Prints JSON: seconds to open it, of the first run and of a later one; private bytes more than before, and of those the
ones in maps of weights (of the artifact, and packed); what became of packed weights. The interpreter is imported
before, and WARM, another artifact of the same operators, is run: pages of the libraries' code count for neither.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.session import INTERPRETERS, Session, import_interpreter, open_session

_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
_PACKED = ("/memfd:", ".packed")
_RUNS = 20


def private_bytes(artifact: str) -> tuple[int, int]:
    """In all, and of maps of weights."""
    whole = weights = 0
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := _HEAD.match(line):
            name = head[1]
        elif line.startswith(("Private_Clean:", "Private_Dirty:")):
            size = int(line.split()[1]) * 1024
            whole += size
            weights += size if name == artifact or any(mark in name for mark in _PACKED) else 0
    return whole, weights


def run(session: Session, inputs: np.ndarray) -> None:
    session.run([inputs.astype(session.signature.inputs[0].dtype)])


def main(interpreter: str, artifact: str, input_path: str, warm: str, cache: str | None = None) -> None:
    runtime: RuntimeName = next(name for name, names in INTERPRETERS.items() if interpreter in names)
    import_interpreter(interpreter)
    inputs = np.load(input_path)
    with open_session(warm, runtime, interpreter=interpreter) as session:
        run(session, np.zeros([int(size) for size in session.signature.inputs[0].shape], inputs.dtype))  # type: ignore[arg-type]  # none varies
    del session
    gc.collect()
    before, weights_before = private_bytes(artifact)
    start = time.perf_counter()
    session = open_session(artifact, runtime, interpreter=interpreter, cache=cache)
    opened = time.perf_counter()
    run(session, inputs)
    first = time.perf_counter()
    after, weights_after = private_bytes(artifact)
    later = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run(session, inputs)
        later.append(time.perf_counter() - begin)
    found = {
        "open_s": opened - start,
        "first_s": first - opened,
        "later_s": min(later),
        "private": after - before,
        "weights": weights_after - weights_before,
        "cache": session.cache,
    }
    session.close()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

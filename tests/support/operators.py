"""Times operators of an artifact in a process of its own, on whichever interpreter: standard input and output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ferryman.profiler.operators import peak, time_operators
from ferryman.runtime.contracts.manifest import Lowering, Requirements, RuntimeName, Variant
from ferryman.runtime.contracts.operators import Operators
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.tensor import Array, Signature, Tensor, pack, to_tensors, unpack
from tests.support.interpreters import ROOT, python_for

_PEAK_SECONDS = 0.01
"""The roof has tests of its own; here it would take longer than all operators."""


class Request(Record):
    """What to time."""

    artifact: str
    variant: Variant
    interpreter: str
    inputs: tuple[Tensor, ...]
    runs: int
    threads: int


class Reply(Record):
    """What came of it."""

    operators: Operators | Unavailable


def variant_of(
    runtime: RuntimeName,
    signature: Signature,
    *,
    origins: dict[str, str] | None = None,
    entry: str | None = None,
) -> Variant:
    """A variant of which only this is known."""
    return Variant(
        name=f"{runtime}-test",
        form="test",
        runtime=runtime,
        payload="artifacts/test",
        signature=signature,
        requires=Requirements(interpreters={}, memory_estimate_bytes=0),
        lowering=Lowering(delegated={}, fallback={}, delegates=0),
        verified=(),
        entry=entry,
        origins=origins or {},
    )


def time_apart(
    artifact: Path, variant: Variant, interpreter: str, inputs: list[Array], *, runs: int = 20, threads: int = 1
) -> Operators | Unavailable:
    """`time_operators` where the interpreter is."""
    python = python_for(interpreter) or Path(sys.executable)
    request = Request(
        artifact=str(artifact),
        variant=variant,
        interpreter=interpreter,
        inputs=to_tensors(inputs),
        runs=runs,
        threads=threads,
    )
    command = [str(python), "-m", "tests.support.operators"]
    done = subprocess.run(command, input=pack(request), capture_output=True, cwd=ROOT, check=False, timeout=120)
    if done.returncode:
        raise AssertionError(done.stderr.decode(errors="replace"))
    return unpack(done.stdout, Reply).operators


def main() -> None:
    request = unpack(sys.stdin.buffer.read(), Request)
    peak._SECONDS = _PEAK_SECONDS  # no option of a profile's
    operators = time_operators(
        Path(request.artifact),
        request.variant,
        request.interpreter,
        [one.to_array().copy() for one in request.inputs],
        threads=request.threads,
        runs=request.runs,
    )
    assert "torch" not in sys.modules
    sys.stdout.buffer.write(pack(Reply(operators=operators)))


if __name__ == "__main__":
    main()

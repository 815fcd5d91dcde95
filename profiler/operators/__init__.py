"""Where the time of an inference goes, operator by operator."""

from __future__ import annotations

from pathlib import Path

from ferryman.profiler.operators.node import make_rows
from ferryman.profiler.operators.peak import measure_peak
from ferryman.profiler.operators.timed import Timed
from ferryman.runtime.contracts.errors import CallerError, FerrymanError
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.operators import Operators
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.session import interpreters_of

RUNS_MAX = 1_000_000


def time_operators(
    artifact: Path, variant: Variant, interpreter: str, inputs: list[Array], *, threads: int, runs: int
) -> Operators | Unavailable:
    """Time each operator of an artifact; in a process of its own, since it opens sessions that others would feel.

    Args:
        artifact: the variant's payload.
        variant: which of its entries runs, and where its operators come from.
        interpreter: executorch, ai-edge-litert or tflite-runtime.
        inputs: in the order of the variant's signature.
        threads: how many the interpreter may use.
        runs: how often each operator is timed, at least 1.

    Returns:
        The table; or why it could not be had: the interpreter does not take the artifact this way, or failed.

    Raises:
        CallerError: `runs` is out of its range, or the interpreter does not run such artifacts.
    """
    if not 1 <= runs <= RUNS_MAX:
        raise CallerError(f"runs must be 1 to {RUNS_MAX:,}, found {runs:,}")
    if interpreter not in interpreters_of(variant.runtime):
        raise CallerError(f"{interpreter!r} does not run {variant.runtime} artifacts")
    try:
        timed = _time(artifact, variant, interpreter, inputs, threads=threads, runs=runs)
    except FerrymanError as error:
        return Unavailable(reason=f"operators of {variant.name} on {interpreter} could not be timed: {error}")
    return Operators(
        source=timed.source,
        rows=make_rows(timed.rows),
        whole=Samples.of(timed.whole),
        peak=measure_peak(),
    )


def _time(artifact: Path, variant: Variant, interpreter: str, inputs: list[Array], *, threads: int, runs: int) -> Timed:
    if variant.runtime == "executorch":
        from ferryman.profiler.operators.executorch import time_executorch

        return time_executorch(artifact, variant, inputs, threads=threads, runs=runs)
    from ferryman.profiler.operators.tflite import time_tflite

    return time_tflite(artifact, variant, interpreter, inputs, threads=threads, runs=runs)

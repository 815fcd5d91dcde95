"""Every benchmark, each in a process of its own, as a table: `python -m tests.benchmarks`."""

from __future__ import annotations

import subprocess
import sys

import click

from ferryman.runtime.contracts.record import decode
from tests.benchmarks.frame import Result, failed, table
from tests.support.interpreters import ROOT

BENCHMARKS = (
    "path",
    "kernels_binary",
    "quantized",
    "pruned",
    "folded",
    "quant_training",
    "quant_calibration",
    "profiler",
    "ota",
    "telemetry",
)


def run(name: str) -> Result | None:
    """The result of one benchmark; None when it broke, and its own words are on stderr."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    try:
        return decode(done.stdout.strip().rpartition("\n")[2].encode(), Result)
    except ValueError as error:
        click.echo(f"{name}: ended with status {done.returncode} and without a result ({error})", err=True)
        return None


def main() -> None:
    """Run all; the exit status is 1 when a bar fails or a benchmark breaks."""
    results = {}
    for name in BENCHMARKS:
        click.echo(f"{name} ...", err=True)
        results[name] = run(name)
    for name, result in results.items():
        click.echo("\n" + (table(name, result) if result else f"{name}: BROKE, see above"))
    sys.exit(any(result is None or failed(result) for result in results.values()))


if __name__ == "__main__":
    main()

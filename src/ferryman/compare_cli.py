"""`ferryman compare`: packages measured in turn, or stored measurements, held against a baseline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ferryman.options import PATH, devices_option, find
from ferryman.runtime.say import echo


class Share(click.ParamType[float]):
    """`2%`, or 0.02."""

    name = "PERCENT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401, D102  # click's signature
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            self.fail(f"{value!r} is not between 0% and 100%, such as 2% or 0.02", param, ctx)
        return share


@click.command()
@click.argument("baseline", type=PATH)
@click.argument("others", type=PATH, nargs=-1)
@click.option("--device", default="local", show_default=True, help="Where to measure packages.")
@devices_option
@click.option(
    "--rounds", type=click.IntRange(6, 100), default=15, show_default=True, help="Fresh processes of each package."
)
@click.option("--margin", type=Share(), default="2%", show_default=True, help="What counts as the same.")
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    help="Timed runs in each process [default: until the median is known to 1 %, for at most 5 s].",
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads an interpreter may use."
)
@click.option("--variant", multiple=True, help="Only this variant; may be given twice [default: all].")
@click.option("--interpreter", multiple=True, help="Only this interpreter; may be given twice [default: all].")
@click.option(
    "--start-below", type=float, metavar="CELSIUS", help="Begin each process only once the device is cooler than this."
)
@click.option("--no-energy", is_flag=True, help="Leave the idle and the active window of ten seconds each out.")
@click.option("--anyway", is_flag=True, help="Compare stored measurements of different devices or threads, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparisons, measurements included, as JSON lines.")
@click.pass_context
def compare(
    ctx: click.Context,
    baseline: Path,
    others: tuple[Path, ...],
    device: str,
    devices_file: Path | None,
    rounds: int,
    margin: float,
    runs: int | None,
    threads: int,
    variant: tuple[str, ...],
    interpreter: tuple[str, ...],
    start_below: float | None,
    no_energy: bool,
    anyway: bool,
    as_json: bool,
) -> None:
    """Tell whether OTHERS are slower than BASELINE, with a margin.

    Packages are measured on the device in turn, every round a fresh process of each; of BASELINE alone, its variants
    are held against its first. Files of JSON lines, as `profile --json` prints them, are compared as they are.

    \b
    The exit code is for CI, and goes by the median latency:
      0  nothing is slower
      3  something is slower, by more than the margin, for sure
      4  unclear: the interval reaches beyond the margin
      1, 2  it could not be measured, or was called wrongly
    """  # noqa: D301  # click wants the very character, where it shall not wrap
    from ferryman.devices.fleet.compare import compare as measure
    from ferryman.devices.fleet.compare import compare_measurements, read_measurements
    from ferryman.profiler.comparing import describe, exit_code
    from ferryman.runtime.contracts.measurement import ProfileSpec
    from ferryman.runtime.contracts.record import encode

    files = (baseline, *others)
    stored = [_is_json(path) for path in files]
    left_out: list[str] = []
    if all(stored):
        measured = [read_measurements(path, left_out=left_out.append) for path in files]
        found = compare_measurements(measured, margin=margin, anyway=anyway, left_out=left_out.append)
    elif any(stored):
        raise click.UsageError("give packages, or files of stored measurements, and not both")
    else:
        spec = ProfileSpec(
            variants=variant,
            interpreters=interpreter,
            threads=threads,
            runs=runs,
            start_below_c=start_below,
            energy=not no_energy,
        )
        found = measure(
            files,
            find(device, devices_file),
            spec,
            rounds=rounds,
            margin=margin,
            progress=lambda step: echo(f"  {step}", err=True),
            left_out=left_out.append,
        )
    for one in found:
        echo(encode(one) if as_json else f"{describe(one)}\n")
    for words in left_out:
        echo(f"left out: {words}", err=as_json)
    ctx.exit(exit_code(found))


def _is_json(path: Path) -> bool:
    if path.exists() and not path.is_file():
        raise click.UsageError(f"{path} is no file: give packages, or files of stored measurements")
    try:
        with path.open("rb") as file:
            begin = file.read(64).lstrip()
    except FileNotFoundError:
        raise click.UsageError(f"there is no file {path}") from None
    if not begin:
        raise click.UsageError(f"{path} is empty: neither a package nor measurements")
    return begin[:1] == b"{"

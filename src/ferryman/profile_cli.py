"""`ferryman profile`."""

from __future__ import annotations

from pathlib import Path

import click

from ferryman.options import PATH, devices_option, find, runner_option
from ferryman.runtime.say import echo


@click.command()
@click.argument("package", type=PATH)
@click.argument("device")
@devices_option
@click.option("--variant", multiple=True, help="Only this variant; may be given twice [default: all].")
@click.option("--interpreter", multiple=True, help="Only this interpreter; may be given twice [default: all].")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads an interpreter may use."
)
@click.option(
    "--starts", type=click.IntRange(1, 100), default=5, show_default=True, help="Fresh processes each is measured in."
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    help="Timed runs in each process [default: until the median is known to 1 %, for at most 5 s].",
)
@click.option(
    "--single-stream", is_flag=True, help="MLPerf's rule instead: at least 1,024 runs and 60 s in each process."
)
@click.option("--warmup", type=click.IntRange(min=0), help="Runs before them [default: until they have settled].")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Also ask at this fixed rate a second (open loop)."
)
@click.option(
    "--sustained",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Also run without a pause for so long: latency, clock and heat over time.",
)
@click.option(
    "--start-below", type=float, metavar="CELSIUS", help="Begin each process only once the device is cooler than this."
)
@click.option("--operators", is_flag=True, help="Also time every operator: which part is slow, and why.")
@click.option("--layers", is_flag=True, help="Also take statistics of every layer's activations.")
@click.option("--inputs", type=PATH, help="Input sets for --layers on `local`, an .npz or .npy file.")
@click.option(
    "--meter",
    metavar="SPEC",
    help="A meter beside the device: mqtt://HOST/TOPIC?kind=tasmota, serial:TTY (watts), see docs/profiler/energy.md.",
)
@click.option(
    "--estimate", metavar="MODEL", help="Also estimate joules by a power model: raspberry-pi-4b, or IDLE_W,CORE_W."
)
@click.option("--no-energy", is_flag=True, help="Leave the idle and the active window of ten seconds each out.")
@runner_option
@click.option("--json", "as_json", is_flag=True, help="Print the measurements, raw samples included, as JSON lines.")
@click.option("--csv", type=PATH, help="Also write a table, one measurement a row, and one of raw samples beside it.")
@click.option("--html", type=PATH, help="Also write a self-contained page with plots.")
@click.option("--trace", type=PATH, help="Also write a trace that ui.perfetto.dev opens.")
def profile(
    package: Path,
    device: str,
    devices_file: Path | None,
    variant: tuple[str, ...],
    interpreter: tuple[str, ...],
    threads: int,
    starts: int,
    runs: int | None,
    single_stream: bool,
    warmup: int | None,
    rate: float | None,
    sustained: float,
    start_below: float | None,
    operators: bool,
    layers: bool,
    inputs: Path | None,
    meter: str | None,
    estimate: str | None,
    no_energy: bool,
    runner: Path | None,
    as_json: bool,
    csv: Path | None,
    html: Path | None,
    trace: Path | None,
) -> None:
    """Measure PACKAGE on DEVICE: cold start, latency, memory, energy, and the conditions.

    DEVICE `local` is this machine; any other must serve the package (push it first) and run an agent. Every variant
    is measured on every interpreter, in several fresh processes each, all in turn. A phone (adb) runs no agent: the
    native runner is started there, and what it measured is sent from here where the phone has a broker.
    """
    from ferryman.devices.fleet.profile import profile as measure
    from ferryman.profiler.estimate import power_model
    from ferryman.runtime.contracts.errors import CallerError
    from ferryman.runtime.contracts.measurement import ProfileSpec
    from ferryman.show import check_targets, show

    if meter is not None and no_energy:
        raise CallerError("--meter measures energy, and --no-energy leaves it out; give one of them")
    if inputs is not None and not layers:
        raise CallerError("--inputs are for --layers; add it, or leave them out")
    check_targets(csv, html, trace, package, inputs)
    spec = ProfileSpec(
        variants=variant,
        interpreters=interpreter,
        threads=threads,
        starts=starts,
        warmup_runs=warmup,
        runs=runs,
        single_stream=single_stream,
        rate_hz=rate,
        sustained_s=sustained,
        start_below_c=start_below,
        energy=not no_energy,
        meter=meter,
        estimate=None if estimate is None else power_model(estimate),
        operators=operators,
        layers=layers,
    )
    found = measure(
        package,
        find(device, devices_file),
        spec,
        inputs=inputs,
        runner=runner,
        progress=lambda step: echo(f"  {step}", err=True),
    )
    show([(device, one) for one in found], as_json=as_json, csv=csv, html=html, trace=trace)

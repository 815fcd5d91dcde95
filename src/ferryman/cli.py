"""The `ferryman` command. Each command imports what it needs when it runs: the device has no torch."""

from __future__ import annotations

import logging
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.ca_cli import ca
from ferryman.collect_cli import collect
from ferryman.compare_cli import compare
from ferryman.convert_cli import convert
from ferryman.devices_cli import devices
from ferryman.enroll_cli import enroll, identity
from ferryman.facts_cli import facts
from ferryman.fleet_cli import fleet
from ferryman.keys_cli import keys
from ferryman.logs_cli import logs
from ferryman.options import (
    BROKER_VARIABLE,
    PATH,
    Seconds,
    Size,
    database_option,
    devices_option,
    find,
    instrument_options,
    instruments_config,
    matching,
    runner_option,
    stop_event,
    telemetry_config,
    telemetry_options,
    update_config,
    update_options,
)
from ferryman.outbox_cli import outbox
from ferryman.profile_cli import profile
from ferryman.relay_cli import relay
from ferryman.repository_cli import publish, repository, serve, withdraw
from ferryman.rollout_cli import rollout
from ferryman.runtime.contracts.errors import CallerError, DeviceError, FerrymanError
from ferryman.runtime.contracts.slot import DEFAULT_ROOT
from ferryman.runtime.install_cli import (
    confirm_command,
    install_command,
    pick_option,
    prepare_command,
    repick_command,
    rollback_command,
)
from ferryman.runtime.say import PrintableFormatter, echo, failure, in_place, printable
from ferryman.ship_cli import ship
from ferryman.update_cli import update

if TYPE_CHECKING:
    from ferryman.devices.fleet.inventory import Device
    from ferryman.runtime.contracts.tensor import Array

_INSTALL = {
    "convert": "torch==2.13.0, then 'ferryman[convert]'",  # torch alone first: pip would take its build for GPUs
    "keys": "'ferryman[publish]'",
    "publish": "'ferryman[publish]'",
    "withdraw": "'ferryman[publish]'",
    "repository": "'ferryman[publish]'",
    "rollout": "'ferryman[publish]'",
    "ship": "torch==2.13.0, then 'ferryman[convert,publish]'",
    "agent": "'ferryman[ota]'",
    "update": "'ferryman[ota]'",
    "ca": "'ferryman[enroll]'",
    "enroll": "'ferryman[enroll,push]'",
    "push": "'ferryman[push]'",
    "rollback": "'ferryman[push]'",
    "confirm": "'ferryman[push]'",
    "devices": "'ferryman[push,inventory,discover]', and 'ferryman[collector]' for --database",
    "profile": "'ferryman[collector]'",
    "compare": "'ferryman[push,collector]'",
    "collect": "'ferryman[collector]'",
    "fleet": "'ferryman[collector]'",
    "report": "'ferryman[collector]'",
    "pareto": "torch==2.13.0, then 'ferryman[convert,collector]'",
}
"""Command -> what pip is to install for what it imports."""
REPORT_MAX = 1000
"""Measurements on one page."""
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Commands(click.Group):
    """Shows an error of ours as one message, and lists commands in the order of a model's journey."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # click's signature
        try:
            return super().invoke(ctx)
        except FerrymanError as error:
            logging.getLogger("ferryman").debug("traceback", exc_info=error)
            raise failure(f"{error.party}: {error}") from error
        except ModuleNotFoundError as error:
            what = _INSTALL.get(ctx.invoked_subcommand or "")
            if what is None:
                raise
            raise failure(f"caller: {error.name} is not installed here; pip install {what}") from error
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has gone
            raise SystemExit(1) from None
        except OSError as error:
            raise failure(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ferryman")
@click.option("-v", "--verbose", count=True, help="Log more: once for progress, twice for toolchains and tracebacks.")
def main(verbose: int) -> None:
    """Carry compressed models to edge devices, and bring measurements back.

    \b
    A model's journey:
      convert   PyTorch model -> package, proven on every interpreter
      push      package -> device, over SSH or adb, proven before it serves
      profile   latency, memory and energy on the device
      compare   packages -> which is slower, by how much, for sure
      collect   telemetry -> database;  report: database -> table and page
      fleet     database -> how all devices do, who stands out, exports
      pareto    packages -> accuracy against bytes and latency

    \b
    Over the air, to many devices:
      keys      what a repository is signed with
      publish   package -> signed repository, as pieces and deltas
      rollout   release -> devices, ring by ring, and back where they do badly
      ship      convert, publish and rollout in one

    \b
    Which devices:
      devices   add, show, label, probe and discover them; what they could run
      logs      what a device's agent says, over SSH
      facts     what this device is and has

    \b
    Who is who at the broker:
      ca        certificates, access rules and a whole broker configuration
      enroll    a device's own key and certificate, over SSH
    """  # noqa: D301  # click wants the very character, where it shall not wrap
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(_LOG_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ferryman").setLevel(level)


main.add_command(convert)


@main.command()
@click.argument("package", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(package: Path, as_json: bool) -> None:
    """Verify PACKAGE and print what it holds, needs, and how it was proven."""
    from ferryman.describe import describe_manifest
    from ferryman.runtime.contracts.record import encode
    from ferryman.runtime.package import open_package

    with open_package(package) as opened:
        if as_json:
            echo(encode(opened.manifest))
        else:
            echo(describe_manifest(opened.manifest, opened.sha256))


@main.command()
@click.argument("package", type=PATH)
@click.argument("device", nargs=-1, required=True, metavar="DEVICE|QUERY...")
@pick_option
@runner_option
@devices_option
def push(package: Path, device: tuple[str, ...], pick: str, runner: Path | None, devices_file: Path | None) -> None:
    """Upload PACKAGE to each DEVICE over SSH, or to a phone over adb, and install it there.

    A query (site=lab, 'shelf-*', all; see `ferryman devices --help`) means devices of the devices file.

    The device writes its inactive slot, reads it back, runs the golden vectors, and only then switches; on any failure
    the old slot keeps serving. One device's failure does not keep the others from theirs.
    """
    from ferryman.devices.fleet.push import push as run
    from ferryman.runtime.package import open_package
    from ferryman.runtime.picking import describe_golden

    targets = matching(device, devices_file)
    if [target.name for target in targets] != list(dict.fromkeys(device)):
        echo(f"to {len(targets)} devices: {', '.join(target.name for target in targets)}", err=True)
    if len(targets) > 1:
        open_package(package).close()  # what is wrong with it is wrong for all of them
    failed = []
    for target in targets:
        try:
            result = run(package, target, pick=pick, runner=runner, progress=_Steps(target.name))
        except FerrymanError as error:
            if len(targets) == 1:
                raise
            echo(f"{target.name}: {error.party}: {error}", err=True)
            failed.append(target.name)
            continue
        if result.install is None:
            echo(f"{target.name}: {result.active.package_name} was active already")
            continue
        rate = result.upload_bytes_per_s
        sent = "nothing to send" if rate is None else f"{result.package_bytes:,} bytes at {rate / 1e6:.1f} MB/s"
        echo(f"{target.name}: {result.active.package_name} is active in slot {result.active.name} ({sent})")
        for golden in result.install.golden:
            echo(f"  {describe_golden(golden)}")
        if result.active.answers:
            echo(f"  {result.active.answers}, answers")
    if failed:
        raise DeviceError(f"{len(failed)} of {len(targets)} devices keep what they had: {', '.join(failed)}")


def _read_npy(path: Path) -> Array:
    from numpy.lib.format import read_array

    try:
        with path.open("rb") as file:
            return read_array(file)
    except Exception as error:  # its header is Python, and goes wrong in as many ways
        raise CallerError(f"inputs are .npy files, and {path} is not one that can be read: {error}") from error


class _Steps:
    """Prints each step once; an upload as a running percentage on a terminal."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last = ""

    def __call__(self, step: str, done: int, total: int) -> None:
        if total and sys.stderr.isatty():
            in_place(f"{self._prefix}: {step} {100 * done // total:3d} %", done=done >= total)
        elif step != self._last:
            echo(f"{self._prefix}: {step}", err=True)
        self._last = step


main.add_command(install_command)
main.add_command(prepare_command)
main.add_command(repick_command)


def _device_or_here(function: Callable[..., None]) -> Callable[..., None]:
    """The arguments of what is done to the slots of DEVICE, or of this one."""
    for decorate in (
        click.pass_context,
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object; without DEVICE, of errors too."),
        click.option(
            "--root", type=PATH, help=f"Without DEVICE: directory of the slot store [default: {DEFAULT_ROOT}]."
        ),
        devices_option,
        click.argument("device", required=False),
    ):
        function = decorate(function)
    return function


@main.command()
@_device_or_here
def rollback(
    ctx: click.Context, device: str | None, devices_file: Path | None, root: Path | None, as_json: bool
) -> None:
    """Let the previously active package serve again: on DEVICE, or on this one."""
    if device is None:
        ctx.invoke(rollback_command, root=root or DEFAULT_ROOT, as_json=as_json)
        return
    from ferryman.devices.fleet.push import rollback as run
    from ferryman.runtime.contracts.record import encode

    active = run(_pushed_to(device, root, devices_file))
    echo(encode(active) if as_json else f"{device}: {active.package_name} is active again in slot {active.name}")


@main.command()
@_device_or_here
def confirm(
    ctx: click.Context, device: str | None, devices_file: Path | None, root: Path | None, as_json: bool
) -> None:
    """Let the package that serves on trial serve for good: on DEVICE, or on this one; without one, nothing."""
    if device is None:
        ctx.invoke(confirm_command, root=root or DEFAULT_ROOT, as_json=as_json)
        return
    from ferryman.devices.fleet.push import confirm as run
    from ferryman.runtime.contracts.record import encode

    active = run(_pushed_to(device, root, devices_file))
    echo(encode(active) if as_json else f"{device}: {active.package_name} in slot {active.name} serves for good")


def _pushed_to(device: str, root: Path | None, devices_file: Path | None) -> Device:
    if root is not None:
        raise click.UsageError("the devices file names DEVICE's root; leave --root out")
    return find(device, devices_file)


@main.command()
@click.option("--device", required=True, help="This device's name: 1 to 64 of A-Z a-z 0-9 _ -.")
@click.option(
    "--broker",
    required=True,
    envvar=BROKER_VARIABLE,
    show_envvar=True,
    help="mqtt://[user:password@]HOST[:PORT] or mqtts://...[?ca=FILE&cert=FILE&key=FILE].",
)
@click.option("--root", type=PATH, default=DEFAULT_ROOT, show_default=True, help="Directory of the slot store.")
@click.option(
    "--confirm",
    type=click.Choice(["collector", "broker"]),
    default="collector",
    show_default=True,
    help="Whose word frees a telemetry record: the collector's receipt, or the broker's acknowledgement.",
)
@click.option(
    "--drift",
    type=float,
    default=600.0,
    show_default=True,
    help="Every so many seconds, sketches of what was served become a telemetry record; 0: never.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="What rollouts may find this device by.")
@click.option(
    "--repository",
    metavar="URL",
    envvar="FERRYMAN_REPOSITORY_URL",
    show_envvar=True,
    help="Where updates come from [default: nowhere, only `ferryman push` brings packages].",
)
@update_options
@click.option("--day-max", type=Size(), help="What all updates of a day may cost on the wire [default: no matter].")
@click.option("--mains", is_flag=True, help="Update only while something supplies power.")
@click.option(
    "--idle", type=click.FloatRange(0, 86400), default=0.0, help="Update only when nobody asked for so many seconds."
)
@telemetry_options
@instrument_options
def agent(
    device: str,
    broker: str,
    root: Path,
    confirm: Any,  # noqa: ANN401  # click has checked it
    drift: float,
    labels: tuple[str, ...],
    repository: str | None,
    mains: bool,
    idle: float,
    telemetry_rate: int | None,
    telemetry_day_max: int | None,
    mode: Any,  # noqa: ANN401  # click has checked it
    keep: float,
    outbox: Path | None,
    outbox_max: int | None,
    sample: float,
    meter: str | None,
    home_assistant: str | None,
    sparkplug: str | None,
    **spending: Any,  # noqa: ANN401  # what `update_options` adds
) -> None:
    """Run on the device: serve the active slot over MQTT, send telemetry, and take updates over the air.

    Updates need the repository's root once, at ROOT/trust/root.json (see `ferryman keys root`).
    """
    from ferryman.devices.agent.agent import Agent, AgentConfig
    from ferryman.devices.agent.systemd import Service
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.labels import parse_labels

    config = AgentConfig(
        device=device,
        root=root,
        broker=parse_broker(broker),
        confirm=confirm,
        drift_s=drift,
        labels=parse_labels(labels),
        update=update_config(repository, **spending) if repository else None,
        mains=mains,
        idle_s=idle,
        instruments=instruments_config(sample=sample, meter=meter, home_assistant=home_assistant, sparkplug=sparkplug),
        telemetry=telemetry_config(
            telemetry_rate=telemetry_rate,
            telemetry_day_max=telemetry_day_max,
            mode=mode,
            keep=keep,
            outbox=outbox,
            outbox_max=outbox_max,
        ),
    )
    with Service() as service:
        made, stop = Agent(config), stop_event()
        echo(f"serving as {device}, broker {config.broker.address}; outbox: {made.waiting:,} waiting", err=True)
        made.run(stop, service)


@main.command()
@click.argument("device")
@click.argument("inputs", nargs=-1, type=PATH)
@devices_option
@click.option("--variant", help="Variant of the package [default: the first the device can run].")
@click.option("--interpreter", help="Interpreter [default: the preferred one of the device].")
@click.option("-o", "--output", type=PATH, help="Write the outputs, under their names, to this .npz file.")
@click.option("--timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds to wait for the answer.")
def run(
    device: str,
    inputs: tuple[Path, ...],
    devices_file: Path | None,
    variant: str | None,
    interpreter: str | None,
    output: Path | None,
    timeout: float,
) -> None:
    """Ask DEVICE's agent for one inference on INPUTS (.npy files in the model's order)."""
    from ferryman.devices.fleet.client import AgentClient
    from ferryman.devices.fleet.profile import broker_of

    target = find(device, devices_file)
    arrays = [_read_npy(path) for path in inputs]
    with AgentClient(broker_of(target), target.name) as client:
        reply = client.infer(arrays, variant=variant, interpreter=interpreter, timeout_s=timeout)
    arrays = [tensor.to_array() for tensor in reply.outputs]
    named = len(set(reply.names)) == len(arrays)
    outputs = dict(zip(reply.names if named else (f"output_{n}" for n in range(len(arrays))), arrays, strict=True))
    told = {name: printable(f"{name} {array.dtype}{list(array.shape)}") for name, array in outputs.items()}
    echo(f"{reply.variant} on {reply.interpreter}: {reply.duration_ns / 1e6:.3f} ms", err=True)
    if output:
        path = output if output.suffix == ".npz" else output.with_name(f"{output.name}.npz")
        _write_npz(path, outputs)
        echo(f"wrote {path}: {', '.join(told.values())}")
        return
    for name, array in outputs.items():
        echo(f"{told[name]}\n{array}")


def _write_npz(path: Path, arrays: dict[str, Array]) -> None:
    """As numpy.savez, which has no room for an output that is called `file`."""
    from numpy.lib.format import write_array

    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    write_array(entry, array, allow_pickle=False)
    except OSError as error:
        raise CallerError(f"cannot write {path}: {error.strerror}; name another with -o") from error


@main.command()
@click.argument("device")
@devices_option
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("--timeout", type=Seconds(), default=10.0, show_default=True, help="Seconds to wait for the answer.")
def status(device: str, devices_file: Path | None, as_json: bool, timeout: float) -> None:
    """Ask DEVICE's agent what it serves, what could run there, and what it has yet to send."""
    from ferryman.describe import describe_status
    from ferryman.devices.fleet.client import AgentClient
    from ferryman.devices.fleet.profile import broker_of
    from ferryman.runtime.contracts.record import encode

    target = find(device, devices_file)
    with AgentClient(broker_of(target), target.name) as client:
        answer = client.status(timeout_s=timeout)
    echo(encode(answer) if as_json else describe_status(answer))


main.add_command(outbox)
main.add_command(profile)
main.add_command(relay)
main.add_command(logs)
main.add_command(compare)
main.add_command(fleet)
main.add_command(devices)
main.add_command(facts)
for command in (keys, publish, withdraw, repository, serve, update, rollout, ship, ca, enroll, identity):
    main.add_command(command)


main.add_command(collect)


@main.command()
@database_option("SQLite file, or postgresql://...")
@click.option("--device", help="Only this device.")
@click.option("--package", help="Only this package, by name or SHA-256.")
@click.option("--html", type=PATH, default=Path("report.html"), show_default=True, help="Page to write.")
@click.option("--csv", type=PATH, help="Also write a table, one measurement a row, and one of raw samples beside it.")
@click.option("--trace", type=PATH, help="Also write a trace that ui.perfetto.dev opens.")
def report(
    database: str, device: str | None, package: str | None, html: Path, csv: Path | None, trace: Path | None
) -> None:
    """Print a table of the stored measurements and write a self-contained page with plots."""
    from ferryman.devices.fleet.store.store import open_store
    from ferryman.show import check_targets, show

    check_targets(csv, html, trace, Path(database))
    left_out: list[str] = []
    store = open_store(database, create=False)
    try:
        found = store.measurements(device=device, package=package, limit=REPORT_MAX, on_damaged=left_out.append)
        total = store.count_measurements(device=device, package=package)
    finally:
        store.close()
    if total > REPORT_MAX:
        newest = f"all but the newest {REPORT_MAX:,} of {total:,} measurements"
        left_out.append(f"{newest}; narrow them down with --device or --package")
    for one in left_out:
        echo(f"left out: {one}", err=True)
    if not found:
        raise CallerError(f"{store.name} holds no measurements that match; run `ferryman profile PACKAGE DEVICE` first")
    show([(one.device, one.measurement) for one in found], csv=csv, html=html, trace=trace, left_out=left_out)


@main.command()
@click.argument("package", type=PATH, nargs=-1, required=True)
@click.option(
    "--data",
    required=True,
    metavar="MODULE:FACTORY",
    help="Gives labelled inputs: an iterable of (inputs, class numbers).",
)
@click.option(
    "-o", "--output", type=PATH, default=Path("pareto.html"), show_default=True, help="Plot: .html, .png or .svg."
)
@click.option("--json", "as_json", is_flag=True, help="Print the points as JSON, one a line.")
def pareto(package: tuple[Path, ...], data: str, output: Path, as_json: bool) -> None:
    """Draw accuracy against bytes and latency over all variants of some PACKAGEs, measured on this machine.

    Variants run on the interpreters of this environment; packages are measured one after the other.
    """
    from ferryman.converter.quantize.calibration import read_labelled
    from ferryman.profiler.pareto import check_plot, draw, measure, table, to_json

    check_plot(output)
    points = measure(package, read_labelled(data), progress=lambda what: echo(f"  {what}", err=True))
    echo(to_json(points) if as_json else table(points))
    draw(points, output)
    echo(f"plot: {output}", err=True)


if __name__ == "__main__":
    main()

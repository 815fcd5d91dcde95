"""`ferryman enroll` on the host, `ferryman identity` on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ferryman.options import PATH, devices_option, find
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError
from ferryman.runtime.install_cli import answer, json_option, root_option
from ferryman.runtime.say import echo

ca_option = click.option(
    "--ca",
    "folder",
    type=PATH,
    envvar="FERRYMAN_CA",
    show_envvar=True,
    required=True,
    help="Folder of the authority (`ferryman ca init`).",
)


@click.command()
@click.argument("device", nargs=-1, required=True)
@devices_option
@ca_option
@click.option("--broker", metavar="URL", help="mqtts://HOST[:PORT]; each device connects to it in the end, as a proof.")
@click.option(
    "--operator",
    "operators",
    type=PATH,
    multiple=True,
    help="Public key (`ferryman ca operator`) whose commands the devices obey, and from then on no unsigned ones.",
)
def enroll(
    device: tuple[str, ...], devices_file: Path | None, folder: Path, broker: str | None, operators: tuple[Path, ...]
) -> None:
    """Give each DEVICE a key and certificate, over SSH.

    The key is made on the device and never leaves it; only its request comes here to be signed. An enrolment that was
    cut short is finished by the same command, and a device whose certificate is good keeps it. A running agent takes
    a new identity at its next start.

    For a device without SSH: `ferryman identity request` there, `ferryman ca sign` here, `ferryman identity accept`
    there.
    """
    from ferryman.ca_cli import refresh_or_say
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.authority.authority import Authority
    from ferryman.devices.fleet.enroll import enroll as run
    from ferryman.runtime.contracts.errors import FerrymanError

    if broker is not None and not parse_broker(broker).tls:
        raise CallerError("--broker: certificates are shown over TLS; write mqtts://")
    targets = [find(name, devices_file) for name in device]
    failed, unproved = [], []
    with Authority(folder) as authority:
        for target in targets:
            try:
                done = run(
                    target,
                    authority,
                    broker=broker,
                    operators=operators,
                    progress=lambda step, name=target.name: echo(f"{name}: {step}", err=True),  # type: ignore[misc]
                )
            except FerrymanError as error:
                if len(targets) == 1:
                    raise
                echo(f"{target.name}: {error.party}: {error}", err=True)
                failed.append(target.name)
                continue
            proof = ", and the broker let it in" if done.connected else ""
            if done.problem is not None:
                unproved.append(target.name)
                proof = f"; it could not show that to the broker: {done.problem}"
            until = f"{done.certified.not_after:%Y-%m-%d}"
            echo(f"{target.name}: {done.what}, serial {done.certified.serial}, until {until}{proof}")
        refresh_or_say(authority, quietly=True)  # a name that was revoked before is no longer denied
    if failed:
        raise DeviceError(
            f"{len(failed)} of {len(targets)} devices are not enrolled: {', '.join(failed)}; run it again"
        )
    if unproved:
        raise LinkError(
            f"all are enrolled, and {len(unproved)} of {len(targets)} could not show it to the broker: "
            f"{', '.join(unproved)}; see that the broker runs and is reached from there, and run it again"
        )


@click.group()
def identity() -> None:
    """Who this device is: its key, its certificate, and whose commands it obeys.

    \b
    Without SSH, a device is enrolled in three steps:
      there   ferryman identity request NAME -o NAME.csr
      host    ferryman ca sign DIR NAME.csr -o NAME.pem
      there   ferryman identity accept NAME.pem
    """  # noqa: D301  # click wants the very character, where it shall not wrap


@identity.command("request")
@click.argument("name")
@root_option
@click.option("-o", "--output", type=click.File("wb"), default="-", help="File to write [default: standard output].")
@json_option
def request_command(name: str, root: Path, output: Any, as_json: bool) -> None:  # noqa: ANN401  # a click file
    """Make a key that stays here, and ask for a certificate for NAME; a request without an answer is made again."""
    requested = answer(lambda: _enrolment().request(root, name), as_json)
    output.write(requested.csr.encode())


@identity.command("accept")
@click.argument("file", type=PATH)
@root_option
@json_option
def accept_command(file: Path, root: Path, as_json: bool) -> None:
    """Take the certificate in FILE, which answers this device's request; the old identity is replaced in one step."""
    found = answer(lambda: _enrolment().accept(root, _read(file)), as_json)
    echo(f"this is {found.name}, serial {found.serial}, until {found.not_after:%Y-%m-%d}; start its agent anew")


@identity.command("trust")
@click.argument("file", type=PATH)
@click.option("--name", help="What the operator is called [default: the file's name].")
@root_option
@json_option
def trust_command(file: Path, name: str | None, root: Path, as_json: bool) -> None:
    """Obey commands signed by the operator whose public key is in FILE, and from the agent's next start no unsigned."""
    operator = name or file.stem

    def work() -> Any:  # noqa: ANN401  # a record
        _enrolment().trust(root, _read(file), operator)
        return _enrolment().show(root)

    answer(work, as_json)
    echo(f"commands signed by {operator} are obeyed from the agent's next start on, and no unsigned ones")


@identity.command("show")
@root_option
@json_option
def show_command(root: Path, as_json: bool) -> None:
    """Show the certificate's name, serial and end, and whose commands are obeyed."""
    shown = answer(lambda: _enrolment().show(root), as_json)
    if (found := shown.certified) is None:
        echo("no certificate" + ("; a request waits for its answer" if shown.pending else ""))
    else:
        echo(f"{found.name}, serial {found.serial}, until {found.not_after:%Y-%m-%d %H:%M} UTC")
    echo(f"commands: {'signed by ' + ', '.join(shown.operators) if shown.operators else 'signed or not'}")


@identity.command("check")
@click.argument("broker")
@root_option
@json_option
def check_command(broker: str, root: Path, as_json: bool) -> None:
    """Connect to BROKER with this device's certificate; a running agent is thrown out for a moment, and comes back."""
    found = answer(lambda: _enrolment().check(root, broker), as_json)
    echo(f"the broker lets {found.name} in")


def _enrolment() -> Any:  # noqa: ANN401  # a module
    """The module, whose extra may be missing.

    Raises:
        DeviceError: it is.
    """
    try:
        from ferryman.devices import enrolment
    except ModuleNotFoundError as error:
        raise DeviceError(f"{error.name} is not installed on the device; pip install 'ferryman[enroll]'") from error
    return enrolment


def _read(path: Path) -> bytes:
    from ferryman.devices.small import read_small

    return read_small(path, 64 << 10)

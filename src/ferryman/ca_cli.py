"""`ferryman ca`: the authority that says who is who at the broker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.options import BROKER_VARIABLE, PATH, stop_event
from ferryman.publisher import utc_now
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.say import echo, printable

if TYPE_CHECKING:
    from ferryman.devices.fleet.authority.authority import Authority
    from ferryman.devices.fleet.authority.broker_files import Refreshed

C = TypeVar("C", bound=Callable[..., Any])

_directory = click.argument("directory", type=PATH)


def _folder_option(command: C) -> C:
    return click.option(
        "-o", "--output", "folder", type=PATH, help="The broker's folder [default: DIRECTORY-broker, beside it]."
    )(command)


@click.group()
def ca() -> None:
    """Make and revoke the certificates by which devices, hosts and the broker know each other.

    \b
    A broker where each device reaches its own topics alone:
      ferryman ca init DIR
      ferryman ca server DIR hub.lan
      ferryman ca broker DIR                  a folder for mosquitto
      ferryman enroll DEVICE... --ca DIR      each device's key and certificate
      ferryman ca client DIR collector --role collector
      ferryman ca serve DIR --broker URL      renews the devices' certificates
    Encrypt the authority's keys by a passphrase in $FERRYMAN_CA_PASSPHRASE.
    """  # noqa: D301  # click wants the very character, where it shall not wrap


@ca.command("init")
@_directory
def init_command(directory: Path) -> None:
    """Make an authority in DIRECTORY. Whoever has its keys owns the fleet: keep it off the broker's machine."""
    from ferryman.devices.fleet.authority.authority import init, passphrase

    init(directory, utc_now())
    echo(f"{directory}: an authority for devices and one for hosts; next: ferryman ca server {directory} HOST")
    if passphrase() is None:
        echo("the keys are not encrypted; set $FERRYMAN_CA_PASSPHRASE before `init` to have them so", err=True)


@ca.command("server")
@_directory
@click.argument("host", nargs=-1, required=True)
@_folder_option
def server_command(directory: Path, host: tuple[str, ...], folder: Path | None) -> None:
    """Make the broker's key and certificate, for every HOST name and address that devices reach it by."""
    from ferryman.devices.fleet.authority.broker_files import default_folder, write_server

    where = f" -o {folder}" if folder else ""
    folder = folder or default_folder(directory)
    with _open(directory) as authority:
        write_server(authority, folder, host, utc_now())
    echo(f"{folder}/server.pem, for {', '.join(host)}; next: ferryman ca broker {directory}{where}")


@ca.command("broker")
@_directory
@_folder_option
@click.option("--path", help="Where mosquitto will find that folder, if elsewhere [default: where it is].")
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="For devices.")
@click.option("--hosts-port", type=click.IntRange(1, 65535), default=8884, show_default=True, help="For hosts.")
@click.option("--bind", default="", help="Address to listen on [default: all].")
@click.option(
    "--home-assistant",
    metavar="[PREFIX]",
    is_flag=False,
    flag_value="homeassistant",
    help="Devices may announce themselves to Home Assistant, and viewers see it.",
)
@click.option("--sparkplug", metavar="GROUP", help="Devices may publish Sparkplug B in this group.")
def broker_command(
    directory: Path,
    folder: Path | None,
    path: str | None,
    port: int,
    hosts_port: int,
    bind: str,
    home_assistant: str | None,
    sparkplug: str | None,
) -> None:
    """Write a folder with a whole mosquitto configuration: TLS, certificates, the revoked, access rules."""
    from ferryman.devices.fleet.authority.broker_files import BrokerOptions, default_folder, not_entered, write_broker

    folder = folder or default_folder(directory)
    options = BrokerOptions(
        path=path or str(folder.absolute()),
        devices_port=port,
        hosts_port=hosts_port,
        bind=bind,
        home_assistant=home_assistant,
        sparkplug_group=sparkplug,
    )
    with _open(directory) as authority:
        write_broker(authority, folder, options, utc_now())
    echo(f"devices: mqtts://HOST:{port}; hosts: mqtts://HOST:{hosts_port} (ferryman ca client)")
    closed = not_entered(folder) if path is None else None
    if closed is None:
        echo(f"start it with: mosquitto -c {options.path}/mosquitto.conf")
        return
    there = "/etc/mosquitto/ferryman"
    echo(
        f"mosquitto cannot run from {folder}: started by root it becomes the user mosquitto, who may not enter "
        f"{closed}; write it where that user may:\n  ferryman ca server {directory} HOST -o {there}\n"
        f"  ferryman ca broker {directory} -o {there}     with the same options",
        err=True,
    )


@ca.command("client")
@_directory
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(["collector", "operator", "rollout", "viewer", "ca"]),
    help="What it may do at the broker; may be given several times.",
)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it counts.")
@click.option("-o", "--output", type=PATH, help="File to write [default: NAME.pem here].")
def client_command(directory: Path, name: str, roles: tuple[str, ...], days: int, output: Path | None) -> None:
    """Make the key and certificate of a host called NAME: one file, for its owner alone."""
    from ferryman.devices.fleet.authority.broker_files import check_output
    from ferryman.devices.identity import write_secret

    output = output or Path(f"{name}.pem")
    with _open(directory) as authority:
        check_output(authority, output, lambda entry: entry.name == name, f"identity of {name}")
        pem = authority.make_host(name, roles, utc_now(), timedelta(days=days))
        try:
            write_secret(output, pem)
        except DeviceError as error:
            raise CallerError(f"{error}; or name another file with -o") from error
        echo(f"{output}: {name}, {', '.join(roles)}, for {days} days")
        written = refresh_or_say(authority).written
    port = next((options.hosts_port for options in written.values()), 8884)
    echo(f"use it as: --broker 'mqtts://HOST:{port}?ca={output}&cert={output}'")


@ca.command("operator")
@click.argument("name")
@click.option("-o", "--output", "folder", type=PATH, default=Path(), help="Folder of both files [default: here].")
def operator_command(name: str, folder: Path) -> None:
    """Make a key that signs commands, NAME.key, and its public half for devices, NAME.pem.

    A device that was given NAME.pem (`ferryman enroll --operator`) obeys signed commands alone, whoever may write to
    its topics. Those who command name NAME.key in $FERRYMAN_OPERATOR_KEY.
    """
    from ferryman.devices.signing import write_operator_key

    if (folder / f"{name}.pem").exists():
        raise CallerError(f"{folder / name}.pem is there already; another key takes another name, or folder (-o)")
    public = write_operator_key(folder, name)
    echo(f"{public.with_suffix('.key')} signs: export FERRYMAN_OPERATOR_KEY={public.with_suffix('.key').absolute()}")
    echo(f"{public} goes to devices: ferryman enroll DEVICE... --operator {public}")


@ca.command("sign")
@_directory
@click.argument("request", type=click.File("rb"))
@click.option("-o", "--output", type=PATH, help="File to write [default: standard output].")
def sign_command(directory: Path, request: Any, output: Path | None) -> None:  # noqa: ANN401  # a click file
    """Sign a device's REQUEST (`ferryman identity request`) by hand; see whose it is before."""
    from ferryman.devices.certificates import PEM_MAX_BYTES, read_request
    from ferryman.devices.fleet.authority.broker_files import check_output
    from ferryman.runtime.durable import write_durable

    csr = request.read(PEM_MAX_BYTES + 1)
    with _open(directory) as authority:
        if output is None or str(output) == "-":
            echo(authority.sign_device(csr, utc_now()), nl=False)
        else:
            name, _ = read_request(csr)
            check_output(authority, output, lambda entry: entry.name == name, f"certificate of {name}")
            pem = authority.sign_device(csr, utc_now())
            try:
                write_durable(output, pem)
            except DeviceError as error:
                raise CallerError(f"{error}; or name another file with -o") from error
        refresh_or_say(authority, quietly=True)


@ca.command("list")
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_command(directory: Path, as_json: bool) -> None:
    """List the newest certificate of everybody."""
    import json

    now = utc_now()
    with _open(directory) as authority:
        for one in authority.registry.newest():
            left = (one.expires_s - now.timestamp()) / 86400
            if as_json:
                fields = {k: v for k, v in one._asdict().items() if k != "pem"}
                echo(json.dumps({**fields, "state": one.state(now)}, sort_keys=True))
            else:
                echo(f"{printable(one.name):<24} {one.roles:<18} {one.state(now):<8} {left:6.0f} days  {one.serial}")


@ca.command("revoke")
@_directory
@click.argument("name", nargs=-1, required=True)
@click.option("-o", "--output", "folder", type=PATH, help="A broker's folder that an earlier ferryman wrote elsewhere.")
def revoke_command(directory: Path, name: tuple[str, ...], folder: Path | None) -> None:
    """No certificate of NAME counts any more; its rights at the broker are gone too."""
    from ferryman.devices.fleet.authority.broker_files import remember

    unknown = None
    with _open(directory) as authority:
        if folder is not None:
            remember(authority, folder)
        for one in name:
            try:
                gone = authority.revoke(one, utc_now())
            except CallerError as error:
                unknown = error  # the others are to be revoked all the same
                continue
            echo(f"{one}: {', '.join(entry.serial for entry in gone) or 'nothing that counted'} revoked")
        problems = refresh_or_say(authority).problems
    if unknown is not None:
        raise unknown
    if problems:
        raise CallerError("the revocation is not in every broker's folder; see above")


@ca.command("crl")
@_directory
@click.option("--hosts", is_flag=True, help="Of hosts instead of devices.")
def crl_command(directory: Path, hosts: bool) -> None:
    """Print the list of the revoked (PEM), for brokers other than `ferryman ca broker` writes."""
    with _open(directory) as authority:
        echo(authority.crl("hosts" if hosts else "devices", utc_now()), nl=False)


@ca.command("acl")
@_directory
def acl_command(directory: Path) -> None:
    """Print the access rules as mosquitto reads them, and write those of every broker's folder anew."""
    from ferryman.devices.fleet.authority.broker_files import default_folder, rules_of

    with _open(directory) as authority:
        written = refresh_or_say(authority, quietly=True).written
        echo(rules_of(authority, next(iter(written), default_folder(directory)), utc_now()), nl=False)


@ca.command("serve")
@_directory
@click.option(
    "--broker",
    required=True,
    envvar=BROKER_VARIABLE,
    show_envvar=True,
    help="mqtts://HOST:8884?ca=FILE&cert=FILE, with an identity of the role ca.",
)
def serve_command(directory: Path, broker: str) -> None:
    """Renew the certificates of enrolled devices that ask for it, until interrupted."""
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.authority.service import RenewalService

    parsed = parse_broker(broker)
    with _open(directory) as authority:
        service = RenewalService(authority, parsed)
        service.run(stop_event(), lambda: echo(f"renewing at {parsed.address}; interrupt to stop", err=True))
    echo(f"{service.signed} certificates renewed, {service.refused} requests refused", err=True)


def _open(directory: Path) -> Authority:
    from ferryman.devices.fleet.authority.authority import Authority

    return Authority(directory)


def refresh_or_say(authority: Authority, *, quietly: bool = False) -> Refreshed:
    """Write every broker's files after a certificate, which is good even where that fails: then it is said.

    Args:
        authority: whose.
        quietly: say nothing where nothing is wrong.
    """
    from ferryman.devices.fleet.authority.broker_files import Refreshed, refresh_all

    try:
        done = refresh_all(authority, utc_now())
    except CallerError as error:
        done = Refreshed({}, [str(error)])
    for folder, options in done.written.items() if not quietly else ():
        put = "" if Path(options.path) == folder else f"put it at {options.path} on the broker and "
        echo(f"{folder}: the broker's rules are written; {put}restart it to have it read them", err=True)
    for problem in done.problems:
        echo(problem, err=True)
    if not (quietly or done.written or done.problems):
        echo(
            f"no broker's folder was written here yet, and no broker knows of this: ferryman ca broker "
            f"{authority.folder}",
            err=True,
        )
    return done

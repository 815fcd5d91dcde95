"""A folder with everything mosquitto needs: configuration, certificates, lists of the revoked, access rules."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ferryman.devices import topics
from ferryman.devices.certificates import PEM_MAX_BYTES, read_certificates
from ferryman.devices.fleet.authority.acl import write_acl
from ferryman.devices.fleet.authority.authority import DEVICE, REGISTRY, SERVER, SIDES, Authority, Side
from ferryman.devices.fleet.authority.registry import Entry
from ferryman.devices.identity import alone, write_secret
from ferryman.devices.small import read_small
from ferryman.runtime.contracts.errors import CallerError, DeviceError, FerrymanError, IdentityError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.durable import write_durable

DEVICES_PORT = 8883
HOSTS_PORT = 8884
PACKET_MAX_BYTES = topics.REQUEST_MAX_BYTES + (64 << 10)
_OPTIONS = "ferryman.json"
BROKERS = "brokers.json"
"""In the authority: where it wrote folders for brokers."""
_AUTHORITYS = (REGISTRY, "lock", BROKERS, *(f"{side}.{kind}" for side in SIDES for kind in ("key", "pem")))
_WRITTEN = ("mosquitto.conf", "acl", *(f"{side}.{kind}" for side in SIDES for kind in ("pem", "crl")))

_CONFIG = """\
# A mosquitto for ferryman, written by `ferryman ca broker`. Start it with: mosquitto -c {folder}/mosquitto.conf
# After `ferryman ca revoke` or `ferryman ca client`, which write {written},
# restart it: on SIGHUP it reads its rules again too, but 2.0.11 may crash later, if a session waited for its client
# then. Devices keep what the broker did not take.
# With settings common to both listeners that crash was there each time.
per_listener_settings true

# Larger packets are refused: a request with inputs may hold {request_mib} MiB.
max_packet_size {packet_max}
# A device has up to 512 records under way; while the collector is away the broker holds them for it.
max_queued_messages 100000
# Small messages should not wait for a full packet.
set_tcp_nodelay true

persistence true
persistence_location {folder}/data/
autosave_interval 60
log_dest stderr
log_type error
log_type warning
log_type notice

# Devices.
listener {devices_port}{bind}
cafile {folder}/devices.pem
crlfile {folder}/devices.crl
{server}
{client_ids}

# Hosts: collectors, operators and so on, who may open several connections.
listener {hosts_port}{bind}
cafile {folder}/hosts.pem
crlfile {folder}/hosts.crl
{server}
"""
_SERVER = """\
certfile {folder}/server.pem
keyfile {folder}/server.pem
tls_version tlsv1.2
require_certificate true
allow_anonymous false
acl_file {folder}/acl
use_identity_as_username true"""


_CLIENT_IDS = """\
# The name in the certificate is the client's, too: none can throw another out by taking its client id.
use_username_as_clientid true"""
_TWO_CONNECTIONS = """\
# For Sparkplug B a device has a second connection, and so chooses its client ids: it could throw others out by theirs.
use_username_as_clientid false"""


class BrokerOptions(Record):
    """What `write_broker` was told, kept beside what it wrote, so that it can be written again."""

    path: str
    """Where mosquitto will find the folder."""
    devices_port: int = DEVICES_PORT
    hosts_port: int = HOSTS_PORT
    bind: str = ""
    """Address to listen on; empty: all."""
    home_assistant: str | None = None
    sparkplug_group: str | None = None


class Brokers(Record):
    """What an authority knows of the brokers' folders."""

    folders: list[str]
    """Absolute paths."""


class Refreshed(NamedTuple):
    """What became of the folders of all brokers."""

    written: dict[Path, BrokerOptions]
    problems: list[str]
    """Why others were not written, and what to do."""


def default_folder(directory: Path) -> Path:
    """Where the broker's folder of an authority is: beside it, for nobody else may enter the authority's own."""
    inside = directory / "broker"  # as earlier versions had it
    if any((inside / name).exists() for name in (_OPTIONS, "server.pem")):
        return inside
    whole = directory if directory.name not in {"", ".."} else directory.resolve()
    return whole.with_name(f"{whole.name}-broker")


def brokers_of(authority: Authority) -> list[Path]:
    """Every folder that was written for a broker, there or not.

    Raises:
        CallerError: the list of them cannot be read.
    """
    path = authority.folder / BROKERS
    try:
        known = decode(read_small(path, PEM_MAX_BYTES), Brokers).folders if path.exists() else []
    except (CallerError, ValueError) as error:
        raise CallerError(f"{path} cannot be read: {error}; remove it, and run `ferryman ca broker` again") from error
    inside = authority.folder / "broker"  # of earlier versions, which did not write the list
    return list(dict.fromkeys([*map(Path, known), *([inside.absolute()] if (inside / _OPTIONS).exists() else [])]))


def refresh_all(authority: Authority, now: dt.datetime) -> Refreshed:
    """Write access rules and lists of the revoked anew, for every broker there is.

    Raises:
        CallerError: the list of the brokers cannot be read.
    """
    written, problems = {}, []
    for folder in brokers_of(authority):
        try:
            if refresh(authority, folder, now):
                written[folder] = _options(folder) or BrokerOptions(path=str(folder))
            else:
                problems.append(
                    f"{folder}, written for a broker, is not there, and was not written; put it back, write another "
                    f"with `ferryman ca broker`, or take it out of {authority.folder / BROKERS}"
                )
        except CallerError as error:
            problems.append(str(error))
    return Refreshed(written, problems)


def not_entered(folder: Path) -> Path | None:
    """The first folder on the way that mosquitto cannot enter when root starts it, as it becomes its own user then."""
    user = _mosquitto()
    if user is None:
        return None
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    for one in reversed((folder.resolve(), *folder.resolve().parents)):
        found = one.stat()
        mine = 0o100 if found.st_uid == user.pw_uid else 0o010 if found.st_gid in groups else 0o001
        if not found.st_mode & mine:
            return one
    return None


def write_broker(authority: Authority, folder: Path, options: BrokerOptions, now: dt.datetime) -> None:
    """Write the folder; the server's certificate must be there (`write_server`).

    Raises:
        CallerError: an option is wrong, the folder is another's, cannot be written, or holds no server's certificate.
    """
    if any(c.isspace() for c in options.path):
        raise CallerError(f"mosquitto reads no path with a space in it: {options.path}; name another folder")
    if any(c.isspace() for c in options.bind):
        raise CallerError(f"expected one address to listen on, found {options.bind!r}")
    _rules(authority, options, now)
    _check_folder(authority, folder)
    theirs = [name for name in _WRITTEN if (folder / name).exists()]
    if theirs and not (folder / _OPTIONS).exists():
        raise CallerError(f"{folder / theirs[0]} is not of `ferryman ca broker`; name another folder with -o")
    if not (folder / "server.pem").is_file():
        raise CallerError(f"{folder} has no certificate of the broker: ferryman ca server, with the broker's host name")
    server = _SERVER.format(folder=options.path)
    text = _CONFIG.format(
        folder=options.path,
        written=folder.absolute(),
        server=server,
        client_ids=_CLIENT_IDS if options.sparkplug_group is None else _TWO_CONNECTIONS,
        bind=f" {options.bind}" if options.bind else "",
        devices_port=options.devices_port,
        hosts_port=options.hosts_port,
        packet_max=PACKET_MAX_BYTES,
        request_mib=topics.REQUEST_MAX_BYTES >> 20,
    )
    try:
        (folder / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durable(folder / _OPTIONS, encode(options))  # first: it says whose folder this is
        for side in SIDES:
            write_durable(folder / f"{side}.pem", (authority.folder / f"{side}.pem").read_bytes())
        write_durable(folder / "mosquitto.conf", text.encode())
    except (OSError, DeviceError) as error:
        raise CallerError(f"cannot write the broker's folder {folder}: {error}") from error
    remember(authority, folder)
    refresh(authority, folder, now)


def write_server(authority: Authority, folder: Path, hosts: Sequence[str], now: dt.datetime) -> None:
    """Put the broker's key and certificate into its folder.

    Raises:
        CallerError: it cannot be written, holds another's certificate, or a host is none.
    """
    _check_folder(authority, folder)
    check_output(authority, folder / "server.pem", lambda entry: entry.roles == SERVER, "certificate of the broker")
    pem = authority.make_server(hosts, now)
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o755)  # whatever the umask: mosquitto's user must enter it
        write_secret(folder / "server.pem", pem)
    except (OSError, DeviceError) as error:
        raise CallerError(f"cannot write the broker's folder {folder}: {error}") from error
    _hand_over(folder)


def refresh(authority: Authority, folder: Path, now: dt.datetime) -> bool:
    """Write access rules and lists of the revoked anew; false: `folder` is no broker's folder.

    Each is written whatever is wrong with the others.

    Raises:
        CallerError: one could not be written; it says what holds until then and how to write it.
    """
    if not (folder / _OPTIONS).exists():
        return False
    steps: dict[str, Callable[[], None]] = {
        f"{side}.crl": partial(_write_crl, authority, folder, side, now) for side in SIDES
    }
    steps["acl"] = lambda: write_secret(folder / "acl", rules_of(authority, folder, now).encode())
    stale: dict[str, str] = {}
    try:
        with alone(authority.folder):  # or the one who read earlier might write later
            for name, write in steps.items():
                try:
                    write()
                except (FerrymanError, OSError) as error:
                    stale[name] = str(error)
        _hand_over(folder)
    except OSError as error:
        stale = stale or {"acl": str(error)}
    if stale:
        raise CallerError(
            f"the broker's files in {folder} are stale ({', '.join(stale)}), and what changed does not hold at the "
            f"broker yet: {next(iter(stale.values()))}; put that right, then run, with the options it had: "
            f"ferryman ca broker {authority.folder} -o {folder}"
        )
    return True


def rules_of(authority: Authority, folder: Path, now: dt.datetime) -> str:
    """The access rules, with what the broker's folder was told if there is one.

    Raises:
        CallerError: its options cannot be read.
    """
    options = _options(folder)
    try:
        return _rules(authority, options or BrokerOptions(path=str(folder)), now)
    except CallerError as error:
        if options is None:
            raise
        raise CallerError(f"{folder / _OPTIONS}: {error}; run `ferryman ca broker` again with another") from error


def check_output(authority: Authority, path: Path, mine: Callable[[Entry], bool], what: str) -> None:
    """See that a file that is there already may be replaced: it begins with a certificate (after a key) that is `mine`.

    Raises:
        CallerError: it is something else; nothing has been written.
    """
    if path.parent.resolve() == authority.folder.resolve() and path.name.startswith(_AUTHORITYS):
        raise CallerError(f"{path} is the authority's own; name another file with -o")
    if not (path.exists() or path.is_symlink()):
        return
    try:
        leaf = read_certificates(read_small(path, PEM_MAX_BYTES), str(path))[0]
        entry = authority.registry.find(f"{leaf.serial_number:x}")
    except (IdentityError, CallerError):
        entry = None
    if entry is None or not mine(entry):
        raise CallerError(f"{path} is there already, and is no {what}; move it away, or name another file with -o")


def _check_folder(authority: Authority, folder: Path) -> None:
    if folder.resolve() == authority.folder.resolve():
        raise CallerError(f"{folder} is the authority's own folder; name another for the broker's files with -o")


def _options(folder: Path) -> BrokerOptions | None:
    try:
        return decode((folder / _OPTIONS).read_bytes(), BrokerOptions)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CallerError(f"{folder / _OPTIONS} cannot be read: {error}; run `ferryman ca broker` again") from error


def _rules(authority: Authority, options: BrokerOptions, now: dt.datetime) -> str:
    newest = authority.registry.ruled()
    good = [one for one in newest if one.state(now) == "good"]
    return write_acl(
        {one.name: one.roles.split(",") for one in good if one.roles not in {DEVICE, SERVER}},
        [one.name for one in newest if one.state(now) == "revoked" and one.roles != SERVER],
        home_assistant=options.home_assistant,
        sparkplug_group=options.sparkplug_group,
    )


def _write_crl(authority: Authority, folder: Path, side: Side, now: dt.datetime) -> None:
    write_durable(folder / f"{side}.crl", authority.crl(side, now))


def remember(authority: Authority, folder: Path) -> None:
    """Have `refresh_all` write a folder, too.

    Raises:
        CallerError: that cannot be noted.
    """
    try:
        with alone(authority.folder):
            known = brokers_of(authority)
            if folder.absolute() not in known:
                folders = [str(one) for one in (*known, folder.absolute())]
                write_durable(authority.folder / BROKERS, encode(Brokers(folders=folders)))
    except (OSError, DeviceError) as error:
        raise CallerError(f"cannot note in {authority.folder} where the broker's folder is: {error}") from error


def _mosquitto() -> pwd.struct_passwd | None:
    """Root's mosquitto becomes the user of that name before it reads its files."""
    try:
        return pwd.getpwnam("mosquitto") if os.geteuid() == 0 else None
    except KeyError:
        return None


def _hand_over(folder: Path) -> None:
    """Root gives the files to whoever the folder was given to (a container's user), or else to mosquitto's user."""
    if os.geteuid() != 0:
        return
    found, user = folder.stat(), _mosquitto()
    if found.st_uid != 0:
        owner = found.st_uid, found.st_gid
    elif user is not None:
        owner = user.pw_uid, user.pw_gid
    else:
        return
    for name in ("server.pem", "data", *_WRITTEN):
        if (folder / name).exists():
            shutil.chown(folder / name, *owner)

"""A folder with everything mosquitto needs: configuration, certificates, lists of the revoked, access rules."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path

from ferryman.devices import topics
from ferryman.devices.fleet.authority.acl import write_acl
from ferryman.devices.fleet.authority.authority import DEVICE, SERVER, SIDES, Authority
from ferryman.devices.identity import alone, write_secret
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.durable import write_durable

DEVICES_PORT = 8883
HOSTS_PORT = 8884
PACKET_MAX_BYTES = topics.REQUEST_MAX_BYTES + (64 << 10)
_OPTIONS = "ferryman.json"

_CONFIG = """\
# A mosquitto for ferryman, written by `ferryman ca broker`. Start it with: mosquitto -c {folder}/mosquitto.conf
# After `ferryman ca revoke` or `ferryman ca client`, restart it: on SIGHUP it reads its rules again too, but 2.0.11 may
# crash later, if a session waited for its client then. Devices keep what the broker did not take.
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


def write_broker(authority: Authority, folder: Path, options: BrokerOptions, now: dt.datetime) -> None:
    """Write the folder; the server's certificate must be there (`write_server`).

    Raises:
        CallerError: it cannot be written, or holds no server's certificate.
    """
    if any(c.isspace() for c in options.path):
        raise CallerError(f"mosquitto reads no path with a space in it: {options.path}; name another folder")
    if not (folder / "server.pem").is_file():
        raise CallerError(f"{folder} has no certificate of the broker: ferryman ca server, with the broker's host name")
    server = _SERVER.format(folder=options.path)
    text = _CONFIG.format(
        folder=options.path,
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
        for side in SIDES:
            write_durable(folder / f"{side}.pem", (authority.folder / f"{side}.pem").read_bytes())
        write_durable(folder / "mosquitto.conf", text.encode())
        write_durable(folder / _OPTIONS, encode(options))
    except (OSError, DeviceError) as error:
        raise CallerError(f"cannot write the broker's folder {folder}: {error}") from error
    refresh(authority, folder, now)


def write_server(authority: Authority, folder: Path, hosts: Sequence[str], now: dt.datetime) -> None:
    """Put the broker's key and certificate into its folder.

    Raises:
        CallerError: it cannot be written, or a host is none.
    """
    pem = authority.make_server(hosts, now)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_secret(folder / "server.pem", pem)
    except (OSError, DeviceError) as error:
        raise CallerError(f"cannot write the broker's folder {folder}: {error}") from error
    _hand_over(folder)


def refresh(authority: Authority, folder: Path, now: dt.datetime) -> bool:
    """Write access rules and lists of the revoked anew; false: `folder` is no broker's folder.

    Raises:
        CallerError: it cannot be written.
    """
    if (options := _options(folder)) is None:
        return False
    with alone(authority.folder):  # or the one who read earlier might write later
        _refresh(authority, folder, options, now)
    _hand_over(folder)
    return True


def rules_of(authority: Authority, folder: Path, now: dt.datetime) -> str:
    """The access rules, with what the broker's folder was told if there is one.

    Raises:
        CallerError: its options cannot be read.
    """
    return _rules(authority, _options(folder) or BrokerOptions(path=str(folder)), now)


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


def _refresh(authority: Authority, folder: Path, options: BrokerOptions, now: dt.datetime) -> None:
    rules = _rules(authority, options, now)
    try:
        write_secret(folder / "acl", rules.encode())
        for side in SIDES:
            write_durable(folder / f"{side}.crl", authority.crl(side, now))
    except DeviceError as error:
        raise CallerError(str(error)) from error


def _hand_over(folder: Path) -> None:
    """Root's mosquitto becomes the user of that name before it reads its files."""
    if os.geteuid() != 0:
        return
    try:
        user = pwd.getpwnam("mosquitto")
    except KeyError:
        return
    for name in ("server.pem", "acl", "data"):
        if (folder / name).exists():
            shutil.chown(folder / name, user.pw_uid, user.pw_gid)

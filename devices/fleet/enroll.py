"""Give a device its identity from the host: the key is made there and stays there, the certificate is signed here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from ferryman.devices.certificates import PEM_MAX_BYTES, RENEW_FRACTION, Certified, fingerprint, utc_now
from ferryman.devices.enrolment import Requested, Shown
from ferryman.devices.fleet.authority.authority import Authority
from ferryman.devices.fleet.inventory import Device, connect
from ferryman.devices.fleet.push import ask
from ferryman.devices.small import read_small
from ferryman.devices.topics import check_name
from ferryman.devices.transport.base import Transport
from ferryman.runtime.contracts.errors import CallerError, FerrymanError
from ferryman.runtime.contracts.record import Record

R = TypeVar("R", bound=Record)
TIMEOUT_S = 60.0
Progress = Callable[[str], None]


class Enrolled(Record):
    """What an enrolment did."""

    device: str
    certified: Certified
    what: Literal["enrolled", "kept"]
    connected: bool = False
    """Whether the device was seen to connect to a broker."""
    problem: str | None = None
    """Why it was not, where it should have been: it is enrolled all the same."""


def enroll(
    device: Device,
    authority: Authority,
    *,
    broker: str | None = None,
    operators: Sequence[Path] = (),
    progress: Progress = lambda _: None,
) -> Enrolled:
    """Have the device make a key, sign its request, and put the certificate there; done again, it finishes or keeps.

    Args:
        device: its name is what the certificate says.
        authority: signs.
        broker: URL; the device connects to it in the end, as a proof. None: it does not.
        operators: public keys whose commands the device obeys, and from then on no unsigned ones.
        progress: told of every step.

    Raises:
        CallerError: the device's name, or an operator's file.
        LinkError: the device cannot be reached.
        DeviceError: the device lacks ferryman or the extra `enroll`, or its disk refused.
        IdentityError: what the device has there is damaged.
    """
    check_name(device.name)
    progress("connect")
    with connect(device) as transport:
        shown = ask(transport, device, ("identity show",), Shown, timeout_s=TIMEOUT_S)
        certified = shown.certified
        kept = certified is not None and _counts(authority, certified, device.name)
        if certified is None or not kept:
            progress("make a key on the device")
            asked = ask(transport, device, ("identity request", device.name), Requested, timeout_s=TIMEOUT_S)
            progress("sign")
            pem = authority.sign_device(asked.csr.encode(), utc_now(), name=device.name)
            progress("put the certificate there")
            certified = _put(transport, device, "identity accept", pem, Certified)
        for path in operators:
            progress(f"trust {path.stem}")
            _put(transport, device, f"identity trust --name {check_name(path.stem, 'operator')}", _read(path), Shown)
        problem = None
        if broker is not None:
            progress("connect from there to the broker")
            try:
                ask(transport, device, ("identity check", broker), Certified, timeout_s=TIMEOUT_S)
            except FerrymanError as error:
                problem = str(error)
    what: Literal["enrolled", "kept"] = "kept" if kept else "enrolled"
    connected = broker is not None and problem is None
    return Enrolled(device=device.name, certified=certified, what=what, connected=connected, problem=problem)


def _counts(authority: Authority, certified: Certified, name: str) -> bool:
    """Whether a certificate is this authority's, this device's, good, and good for a while."""
    now = utc_now()
    mine = fingerprint(authority.certificate("devices").public_key())
    if (certified.authority_key_sha256, certified.name) != (mine, name) or certified.left(now) <= RENEW_FRACTION:
        return False
    return any(one.serial == certified.serial and one.state(now) == "good" for one in authority.registry.of(name))


def _put(transport: Transport, device: Device, command: str, data: bytes, kind: type[R]) -> R:
    """Have a command on the device read some bytes, as a file there."""
    remote = f"{device.root}/identity/incoming.pem"
    with tempfile.NamedTemporaryFile(prefix="ferryman-") as file:
        file.write(data)
        file.flush()
        transport.put(Path(file.name), remote, lambda _done, _total: None)
    try:
        return ask(transport, device, (command, remote), kind, timeout_s=TIMEOUT_S)
    finally:
        transport.run(("rm", "-f", remote), timeout_s=TIMEOUT_S)


def _read(path: Path) -> bytes:
    try:
        return read_small(path, PEM_MAX_BYTES)
    except CallerError as error:
        raise CallerError(f"the operator's public key: {error}") from error

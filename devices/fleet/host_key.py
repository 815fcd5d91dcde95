"""A device's SSH host key, and how it comes to be trusted: by its fingerprint, read on the device, never silently."""

from __future__ import annotations

import asyncio
import os

from ferryman.devices.fleet.inventory import SshDevice
from ferryman.runtime.contracts.errors import CallerError, IdentityError, LinkError

ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
"""Asked for one after the other: a server shows one key at a time."""
ON_DEVICE = "for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done"
"""What prints the fingerprints on the device itself."""


def offered(device: SshDevice, *, timeout_s: float = 10.0) -> dict[str, str]:
    """Fingerprints of the host keys that whoever answers there shows: fingerprint -> line for known_hosts.

    Raises:
        LinkError: nobody answers, or nobody that speaks SSH.
    """
    import asyncssh

    from ferryman.devices.transport.ssh import advice

    found: dict[str, str] = {}
    do = "check `host` and `port` in the devices file"
    why = f"none of {', '.join(ALGORITHMS)}"
    for algorithm in ALGORITHMS:
        ask = asyncssh.get_server_host_key(device.host, device.port, server_host_key_algs=[algorithm], config=None)
        try:
            key = asyncio.run(asyncio.wait_for(ask, timeout_s))
        except (asyncssh.Error, ConnectionResetError) as error:  # as servers answer that have none of this kind
            why = str(error)
            continue
        except (OSError, TimeoutError) as error:
            why, do = str(error) or "no answer in time", advice(error, device.host)
            break
        if key is not None:
            place = device.host if device.port == 22 else f"[{device.host}]:{device.port}"  # noqa: PLR2004  # SSH's
            words = key.export_public_key("openssh").decode().split()[:2]
            found[key.get_fingerprint()] = f"{place} {' '.join(words)}"
    if not found:
        raise LinkError(f"{device.name}: {device.address} shows no host key: {why}; {do}")
    return found


def trust(device: SshDevice, fingerprint: str, *, timeout_s: float = 10.0) -> bool:
    """Put the host key with this fingerprint into the device's known_hosts; False: it was there already.

    Raises:
        CallerError: it is no fingerprint, or known_hosts cannot be written.
        IdentityError: whoever answers there shows another key, or another is known for it; nothing is written.
        LinkError: nobody answers.
    """
    if not fingerprint.startswith("SHA256:"):
        raise CallerError(f"a fingerprint begins with SHA256:, found {fingerprint[:80]!r}; on the device: {ON_DEVICE}")
    shown = offered(device, timeout_s=timeout_s)
    if fingerprint not in shown:
        raise IdentityError(
            f"{device.name}: expected the host key {fingerprint}, found {', '.join(shown)}; is that the device? "
            f"Nothing was trusted. On the device: {ON_DEVICE}"
        )
    line = shown[fingerprint]
    path = device.known_hosts.expanduser()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if line in (" ".join(one.split()[:3]) for one in text.splitlines()):
            return False
        _expect_no_other(device, text, line)
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "w") as file:
            file.write(("" if not text or text.endswith("\n") else "\n") + line + "\n")
    except (OSError, ValueError) as error:
        raise CallerError(f"known_hosts {path}: {error}; correct `known_hosts` in the devices file") from error
    return True


def _expect_no_other(device: SshDevice, text: str, line: str) -> None:
    """See that no other key of the same kind is known for the host.

    Raises:
        IdentityError: one is; a key that changed is what an impostor looks like.
    """
    import asyncssh

    known, *_ = asyncssh.import_known_hosts(text).match(device.host, device.host, device.port)
    place, kind = line.split()[:2]
    for key in known:
        if key.get_algorithm() == kind:
            raise IdentityError(
                f"{device.name}: known_hosts has another {kind} key of it, {key.get_fingerprint()}; if the device was "
                f"set up anew: ssh-keygen -R '{place}' -f {device.known_hosts}, then once more"
            )

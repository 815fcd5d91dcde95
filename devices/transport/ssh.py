"""A device behind SSH: host keys always checked, key authentication only, a dead link noticed in bounded time.

Files go through `cat` on the device: faster than SFTP, whose requests each want an answer; there is no SFTP server to
miss (Dropbear has none); and when the disk is full, `cat` says so where SFTP says "Failure".
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import asyncssh

from ferryman.devices.transport.base import CHUNK_BYTES, CompletedCommand, Progress, check_output
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError, RequestTimeout

T = TypeVar("T")

# OpenSSH's own list, AES first: in Python, ChaCha20-Poly1305 reaches about two thirds of its throughput.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_KEEPALIVES_MISSED = 3


@dataclass(frozen=True)
class SshAddress:
    """Where a device is and how to get in."""

    host: str
    user: str
    port: int = 22
    key: Path | None = None
    """Private key file; None: the SSH agent's keys and the user's default ones."""
    known_hosts: Path = Path("~/.ssh/known_hosts")
    name: str = ""
    """In the devices file."""

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


class SshTransport(Closing):
    """Implements `Transport`; the event loop runs only inside its calls."""

    def __init__(self, address: SshAddress, *, connect_timeout_s: float = 15.0, keepalive_s: float = 10.0) -> None:
        """Connect.

        Args:
            address: of the device.
            connect_timeout_s: bounds connecting, and then logging in.
            keepalive_s: a link that answers nothing for four times as long is dead.

        Raises:
            LinkError: nobody there, an unknown or changed host key, or the device does not let us in.
            CallerError: the key file or the known-hosts file cannot be used.
        """
        self._address = address
        self._known_hosts = address.known_hosts.expanduser()
        known = _read_known_hosts(self._known_hosts)
        self._runner = asyncio.Runner()
        try:
            with self._link_errors("connect"):
                self._connection = self._runner.run(self._connect(known, connect_timeout_s, keepalive_s))
        except BaseException as error:
            self._runner.close()
            if isinstance(error, ValueError):  # a name that cannot be looked up
                raise CallerError(f"host {address.host!r}, user {address.user!r}: {error}; correct them") from error
            raise

    async def _connect(
        self, known: asyncssh.SSHKnownHosts, connect_timeout_s: float, keepalive_s: float
    ) -> asyncssh.SSHClientConnection:
        key = self._address.key
        return await asyncssh.connect(
            self._address.host,
            self._address.port,
            username=self._address.user,
            config=None,  # the devices file says everything
            known_hosts=known,
            preferred_auth="publickey",
            encryption_algs=_CIPHERS,
            connect_timeout=connect_timeout_s,
            login_timeout=connect_timeout_s,
            keepalive_interval=keepalive_s,
            keepalive_count_max=_KEEPALIVES_MISSED,
            **({} if key is None else {"client_keys": [str(key.expanduser())], "agent_path": None}),
        )

    def put(self, local: Path, remote: str, progress: Progress) -> None:
        """See `Transport.put`."""
        with local.open("rb") as source:
            self._run(self._put(source, remote, progress), f"upload of {local.name}")

    async def _put(self, source: BinaryIO, remote: str, progress: Progress) -> None:
        total = os.fstat(source.fileno()).st_size
        done = 0
        progress(done, total)
        command = f"cat > {shlex.quote(remote)}"
        async with self._connection.create_process(command, encoding=None) as process:
            try:
                while chunk := source.read(CHUNK_BYTES):
                    process.stdin.write(chunk)
                    await process.stdin.drain()
                    done += len(chunk)
                    progress(done, total)
                process.stdin.write_eof()
            except (BrokenPipeError, ConnectionError):
                if self._connection.is_closed():
                    raise
                # `cat` gave up; it says why
            ended = await process.wait()
        if ended.exit_status is None and ended.exit_signal is None:
            raise asyncssh.ConnectionLost("the channel closed early")
        if ended.exit_status != 0 or done != total:
            why = bytes(ended.stderr or b"").decode(errors="replace").strip()  # type: ignore[arg-type]  # no encoding
            raise DeviceError(f"{self._address} cannot write {remote}: {why or f'cat ended with {ended.returncode}'}")

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        """See `Transport.run`."""
        return self._run(self._command(argv, timeout_s), f"`{argv[0]}`")

    async def _command(self, argv: Sequence[str], timeout_s: float) -> CompletedCommand:
        what = f"`{argv[0]}` on {self._address}"
        try:
            async with asyncio.timeout(timeout_s):
                process = await self._connection.create_process(shlex.join(argv), encoding=None, stdin=asyncssh.DEVNULL)
                stdout, stderr = await asyncio.gather(_listen(process.stdout, what), _listen(process.stderr, what))
                done = await process.wait()
        except TimeoutError:
            raise RequestTimeout(f"{what} did not end within {timeout_s:g} s") from None
        if done.returncode is None:
            raise asyncssh.ConnectionLost("the channel closed early")
        return CompletedCommand(done.returncode, stdout, stderr)

    def close(self) -> None:
        """See `Transport.close`."""
        self._connection.abort()
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, T], what: str) -> T:
        with self._link_errors(what):
            return self._runner.run(work)

    @contextmanager
    def _link_errors(self, what: str) -> Iterator[None]:
        """Say what broke the link as a LinkError."""
        there = self._address
        try:
            yield
        except asyncssh.HostKeyNotVerifiable as error:
            raise LinkError(
                f"the host key of {there} is not the one in {self._known_hosts}, or there is none ({error}); if this "
                f"is its first time: `ferryman devices trust {there.name or 'DEVICE'}` shows it, and how to compare "
                "it; if the key changed, find out why"
            ) from error
        except asyncssh.PermissionDenied as error:
            key = f"the key {there.key}" if there.key else "none of the SSH agent's or your default keys"
            allowed = "is not in its authorized_keys" if there.key else "is in its authorized_keys"
            raise LinkError(f"{there} does not let us in ({error.reason}): {key} {allowed}; use ssh-copy-id") from error
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise CallerError(
                f"the key {there.key} cannot be used: {error}; one with a passphrase goes into ssh-agent, "
                "and `key` out of the devices file"
            ) from error
        except (asyncssh.Error, OSError, TimeoutError) as error:
            if isinstance(error, OSError) and error.filename:
                raise CallerError(f"{error.filename}: {error.strerror}; correct it in the devices file") from error
            raise LinkError(
                f"{what}: the link to {there} failed: {str(error) or 'no answer in time'}; check power and network, "
                "and `host` and `port` in the devices file"
            ) from error


def _read_known_hosts(path: Path) -> asyncssh.SSHKnownHosts:
    try:
        return asyncssh.import_known_hosts(path.read_text())
    except FileNotFoundError:
        return asyncssh.import_known_hosts("")  # knows no host, which shows once somebody answers
    except OSError as error:
        raise CallerError(f"known_hosts {path}: {error.strerror}; correct it in the devices file") from error
    except ValueError as error:
        raise CallerError(f"known_hosts {path}: {error}; mend that line, or take it out") from error


async def _listen(stream: asyncssh.SSHReader[bytes], what: str) -> bytes:
    said = bytearray()
    while chunk := await stream.read(CHUNK_BYTES):
        said += chunk
        check_output(said, what)
    return bytes(said)

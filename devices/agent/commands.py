"""Which commands an agent obeys: all, or once it trusts an operator's key, only what such a key signed for it.

A request is signed together with the challenge of the agent's status. The agent makes a new one at every start, so that
nothing signed before it counts again, and no clock and no disk is needed for that; within one challenge every nonce
counts once. A wish (`Desired`) is kept by the broker for a device that is away, and so it carries no challenge: its
version only grows, and the agent remembers that on disk. A command that has expired is refused wherever the device's
clock is sure; where it is not, the challenge or the version alone stand.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ferryman.devices.identity import OPERATORS, folder_of
from ferryman.devices.sealed import MAGIC, Header, Kind, take_apart
from ferryman.runtime.contracts.errors import DeviceError, IdentityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

log = logging.getLogger(__name__)

NONCES_MAX = 10_000
"""Remembered of one challenge; then there is another."""
SKEW_NS = 60 * 10**9
"""How far the operator's clock may be ahead."""


class CommandGuard:
    """Lets commands through; any thread may ask."""

    def __init__(self, device: str, root: Path, clock_ns: Callable[[], int | None]) -> None:
        """Look for keys.

        Args:
            device: this one's name.
            root: of the slot store.
            clock_ns: the wall clock; None: it is not sure.

        Raises:
            IdentityError: a key's file is no key.
            DeviceError: there are keys, and nothing here that can check signatures.
        """
        self._device = device
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._keys = _read_keys(folder_of(root) / OPERATORS)
        self._nonces: set[str] = set()
        self._on_new: Callable[[], None] = lambda: None
        self.challenge = secrets.token_hex(16) if self._keys else ""
        """For `Status.challenge`."""

    def on_new_challenge(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the challenge changed, to announce it."""
        self._on_new = callback

    def open(self, data: bytes, kind: Kind) -> bytes:
        """The command itself.

        Raises:
            IdentityError: it is not obeyed; the message says why and what to do.
        """
        if not self._keys:
            if data.startswith(MAGIC):
                raise IdentityError(
                    f"the {kind} is signed, and {self._device} trusts no operator's key; give it one: "
                    "`ferryman enroll --operator FILE`"
                )
            return data
        from ferryman.devices.signing import verify

        try:
            signed = take_apart(data)
        except ValueError as error:
            raise IdentityError(f"the signed {kind} is damaged: {error}; send it again") from error
        if signed is None:
            raise IdentityError(
                f"the {kind} is not signed, and {self._device} obeys only what an operator signed; "
                "name the key in $FERRYMAN_OPERATOR_KEY"
            )
        header = signed.header
        key = self._keys.get(header.key)
        if key is None:
            known = ", ".join(sorted(self._keys))
            raise IdentityError(f"key {header.key} signed the {kind}, and {self._device} trusts only {known}")
        verify(signed, key)
        self._check(header, kind)
        return signed.payload

    def _check(self, header: Header, kind: Kind) -> None:
        """Whether what is proven to be signed is meant for here and now."""
        if (header.device, header.kind) != (self._device, kind):
            raise IdentityError(
                f"a {header.kind} for {header.device} came to {self._device} as a {kind}: sent on by somebody else"
            )
        if (now_ns := self._clock_ns()) is not None:
            if header.expires_ns <= now_ns:
                late_s = (now_ns - header.expires_ns) / 1e9
                raise IdentityError(
                    f"the {kind} expired {late_s:.0f} s ago by the clock of {self._device}: held up, or a wrong clock"
                )
            if header.issued_ns > now_ns + SKEW_NS:
                ahead_s = (header.issued_ns - now_ns) / 1e9
                raise IdentityError(f"the {kind} was signed {ahead_s:.0f} s in the future: see the operator's clock")
        if kind == "request":
            self._check_once(header)

    def _check_once(self, header: Header) -> None:
        with self._lock:
            if not secrets.compare_digest(header.challenge.encode(), self.challenge.encode()):
                raise IdentityError(
                    f"the request answers another challenge than that of {self._device}: from before its last start, "
                    "or a replay; ask again"
                )
            if header.nonce in self._nonces:
                raise IdentityError(f"the request's nonce {header.nonce} was used before: a replay")
            self._nonces.add(header.nonce)
            if len(self._nonces) < NONCES_MAX:
                return
            self._nonces.clear()
            self.challenge = secrets.token_hex(16)
        self._on_new()


def _read_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    files = sorted(folder.glob("*.pem"))
    if not files:
        return {}
    try:
        from ferryman.devices.signing import key_id, load_public
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"{folder} names operators, and {error.name}, which checks their signatures, is not installed here; "
            "pip install 'ferryman[enroll]'"
        ) from error
    keys = {}
    for path in files:
        try:
            key = load_public(path.read_bytes())
        except (OSError, IdentityError) as error:
            raise IdentityError(f"{path}: {error}; put an operator's public key there, or take it away") from error
        keys[key_id(key)] = key
    log.info("commands are obeyed that one of %s signed", ", ".join(sorted(keys)))
    return keys

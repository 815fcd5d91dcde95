"""Signs what a host commands, with the key that the environment names, for devices that want it so."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ferryman.devices.broker import BrokerConfig
from ferryman.runtime.contracts.errors import CallerError, IdentityError

if TYPE_CHECKING:
    from ferryman.devices.signing import OperatorKey

KEY_VARIABLE = "FERRYMAN_OPERATOR_KEY"
"""As in `ferryman.devices.signing`, which takes the extra `enroll`."""
DESIRED_LIFE_NS = 30 * 24 * 3600 * 10**9
"""How long a device that is away may take to learn what it should run; a rollout that still stands says it anew."""


class Signer:
    """A key, or none."""

    def __init__(self, key: OperatorKey | None) -> None:
        self._key = key

    @classmethod
    def of_environment(cls) -> Signer:
        """The key that $FERRYMAN_OPERATOR_KEY names, if it names one.

        Raises:
            CallerError: it cannot be read, or the extra `enroll` is missing.
            IdentityError: others could read or change it.
        """
        if not os.environ.get(KEY_VARIABLE):
            return cls(None)
        try:
            from ferryman.devices.signing import operator_key
        except ModuleNotFoundError as error:
            raise CallerError(f"${KEY_VARIABLE}: {error.name} is missing; pip install 'ferryman[enroll]'") from error
        return cls(operator_key())

    def request(self, payload: bytes, device: str, challenge: str, timeout_s: float) -> bytes:
        """Sign a request, which is good for as long as it is waited for.

        Raises:
            IdentityError: there is no key.
        """
        life_ns = int(timeout_s * 1e9)
        key = self._need(device)
        return key.sign(
            payload, device=device, kind="request", now_ns=time.time_ns(), life_ns=life_ns, challenge=challenge
        )

    def desired(self, payload: bytes, device: str) -> bytes:
        """Sign a wish.

        Raises:
            IdentityError: there is no key.
        """
        key = self._need(device)
        return key.sign(payload, device=device, kind="desired", now_ns=time.time_ns(), life_ns=DESIRED_LIFE_NS)

    def _need(self, device: str) -> OperatorKey:
        if self._key is None:
            raise IdentityError(f"{device} obeys only signed commands; name an operator's key in ${KEY_VARIABLE}")
        return self._key


def own_name(broker: BrokerConfig) -> str | None:
    """The name in our certificate, which the broker's access rules go by; None: we show none.

    Raises:
        CallerError: the certificate cannot be read, or the extra `enroll` is missing.
    """
    if broker.tls_cert is None:
        return None
    try:
        from ferryman.devices.certificates import certified, read_certificates

        return certified(read_certificates(Path(broker.tls_cert).read_bytes(), broker.tls_cert)[0]).name
    except ModuleNotFoundError as error:
        raise CallerError(
            f"a certificate takes {error.name}, which is missing; pip install 'ferryman[enroll]'"
        ) from error
    except IdentityError:
        return None  # of another authority's making: it has rules of its own
    except OSError as error:
        raise CallerError(f"broker: cannot read {broker.tls_cert}: {error.strerror}") from error

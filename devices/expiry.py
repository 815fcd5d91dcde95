"""Says in time that a certificate ends which nothing renews; without `cryptography` none can be read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ferryman.devices.broker import BrokerConfig

if TYPE_CHECKING:
    from ferryman.devices.certificates import Certified

log = logging.getLogger(__name__)

LOOK_S = 24 * 3600.0
"""How often the file is looked at."""


def shown_to(broker: BrokerConfig) -> Certified | None:
    """What the certificate says that we show to the broker; None: there is none, or it cannot be read."""
    if broker.tls_cert is None:
        return None
    try:
        from ferryman.devices.certificates import PEM_MAX_BYTES, certified, read_certificates
        from ferryman.devices.small import read_small

        return certified(read_certificates(read_small(Path(broker.tls_cert), PEM_MAX_BYTES), broker.tls_cert)[0])
    except Exception:  # noqa: BLE001  # the link tells what is wrong with it; this only adds to that
        return None


def warn_of_expiry(broker: BrokerConfig) -> None:
    """Log that a certificate has expired, or has less than a third of its life left."""
    found = shown_to(broker)
    if found is None:
        return
    from ferryman.devices.certificates import RENEW_FRACTION, utc_now

    now = utc_now()
    if found.left(now) >= RENEW_FRACTION:
        return
    verb = "expired" if found.not_after <= now else "expires"
    log.warning(
        "the certificate of %s in %s %s at %s UTC, and nothing renews it; the broker lets nobody in with it then: for "
        "a host, `ferryman ca client` with the same name and roles, put the file in its place and start this anew; for "
        "a device, `ferryman enroll`",
        found.name,
        broker.tls_cert,
        verb,
        f"{found.not_after:%Y-%m-%d %H:%M}",
    )


@contextmanager
def watching(broker: BrokerConfig | None) -> Iterator[None]:
    """Warn now, and once a day meanwhile; None: somebody else sees to it."""
    if broker is None or broker.tls_cert is None:
        yield
        return
    stop = threading.Event()

    def look() -> None:
        warn_of_expiry(broker)
        while not stop.wait(LOOK_S):
            warn_of_expiry(broker)

    thread = threading.Thread(target=look, name="certificate-expiry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

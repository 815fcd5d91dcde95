"""Answers devices that ask for the renewal of their certificates, over the broker."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.certificates import PEM_MAX_BYTES, utc_now
from ferryman.devices.expiry import watching
from ferryman.devices.fleet.authority.authority import Authority
from ferryman.devices.fleet.rights import check_right
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.errors import CallerError, FerrymanError, IdentityError, LinkError

log = logging.getLogger(__name__)

WAITING_MAX = 1000
"""Requests that wait; one more is dropped, and its device asks again."""
_TURN_S = 0.2


class RenewalService:
    """Signs what enrolled devices ask for; that each asks for itself is the broker's doing, by its access rules."""

    def __init__(self, authority: Authority, broker: BrokerConfig, client_id: str = "ferryman-ca") -> None:
        self._authority = authority
        self._waiting: queue.Queue[tuple[str, bytes]] = queue.Queue(WAITING_MAX)
        self.link = Link(broker, client_id, packet_max_bytes=PEM_MAX_BYTES + 1024)
        self.link.subscribe(topics.ALL_CSR, self._on_request)
        check_right(self.link, "ca", "certificate")
        self.signed = 0
        self.refused = 0

    def run(self, stop: threading.Event, on_connected: Callable[[], None] = lambda: None) -> None:
        """Answer until `stop` is set."""
        self.link.on_ready(on_connected)
        self.link.start()
        try:
            with watching(self.link.broker):
                while not stop.is_set():
                    try:
                        device, csr = self._waiting.get(timeout=_TURN_S)
                    except queue.Empty:
                        continue
                    self._answer(device, csr)
        finally:
            self.link.stop()

    def _answer(self, device: str, csr: bytes) -> None:
        try:
            pem = self._authority.sign_device(csr, utc_now(), name=device, renewal=True)
            self.link.publish(Message(topic=topics.certificate(device), payload=pem))
        except (IdentityError, CallerError) as error:
            self.refused += 1
            log.warning("%s: %s: %s", device, error.party, error)
        except LinkError as error:
            log.info("%s: its certificate is signed and not sent, it will ask again: %s", device, error)
        except FerrymanError:
            log.exception("%s: no certificate", device)
        else:
            self.signed += 1
            log.info("%s: its certificate is renewed", device)

    def _on_request(self, delivery: Delivery) -> None:
        try:
            device = topics.device_of(delivery.topic)
            self._waiting.put_nowait((device, delivery.payload))
        except ValueError as error:
            log.warning("a request to renew a certificate ignored: %s", error)
        except queue.Full:
            log.warning("%s: %d requests wait already, this one is dropped; it will ask again", device, WAITING_MAX)

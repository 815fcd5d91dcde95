"""A device's certificate renews itself: new key, new request, tried at the broker, then in the old one's place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.certificates import PEM_MAX_BYTES, RENEW_FRACTION, Certified, utc_now
from ferryman.devices.enrolment import accept_renewal, current, discard_renewal, promote, request
from ferryman.devices.identity import CURRENT, NEXT, folder_of, of_file
from ferryman.devices.mqtt import Delivery, Link, Message, backoff_s
from ferryman.runtime.contracts.errors import FerrymanError, IdentityError, LinkError

log = logging.getLogger(__name__)

LOOK_S = 600.0
"""How often the certificate is looked at,"""
ASK_FIRST_S = 60.0
"""how long an answer may take before it is asked again,"""
ASK_CAP_S = 3600.0
"""and at most, doubling."""
TRIAL_S = 60.0
"""How long the broker may take to let the new certificate in."""
_POLL_S = 0.1


class Renewal:
    """Keeps one device's certificate alive, on a thread of its own."""

    def __init__(
        self,
        device: str,
        root: Path,
        link: Link,
        *,
        look_s: float = LOOK_S,
        ask_first_s: float = ASK_FIRST_S,
        trial_s: float = TRIAL_S,
    ) -> None:
        """Listen for answers; `link` is not started yet, and uses the identity at `root`."""
        self._device = device
        self._root = root
        self._link = link
        self._look_s, self._ask_first_s, self._trial_s = look_s, ask_first_s, trial_s
        self._answer: bytes | None = None
        self._changed = threading.Event()
        self._asked = 0
        link.subscribe(topics.certificate(device), self._on_answer)

    def run(self, stop: threading.Event) -> None:
        """Look, ask, try, until `stop` is set and `wake` was called."""
        while not stop.is_set():
            self._changed.clear()
            try:
                wait_s = self._step(stop)
            except (FerrymanError, OSError) as error:
                log.error("certificate: %s", error)  # noqa: TRY400  # said in full
                wait_s = self._look_s
            if not stop.is_set() and self._answer is None:
                self._changed.wait(wait_s)

    def wake(self) -> None:
        """Have `run` look at once."""
        self._changed.set()

    def _step(self, stop: threading.Event) -> float:
        """Do the next thing; returns the seconds until there is another."""
        answer, self._answer = self._answer, None
        if answer is not None and not accept_renewal(self._root, answer, self._device):
            log.warning("certificate: an answer that is to no request of this device, ignored")
        if (folder_of(self._root) / NEXT).exists():
            return self._look_s if self._link.paused else self._try(stop)
        found = current(self._root)
        if found is None or found.left(utc_now()) > RENEW_FRACTION:
            self._asked = 0
            return self._look_s
        return self._ask(found)

    def _ask(self, found: Certified) -> float:
        wait_s = backoff_s(self._asked, self._ask_first_s, ASK_CAP_S)
        if found.not_after <= utc_now():
            raise IdentityError(
                f"that of {found.name} expired at {found.not_after:%Y-%m-%d %H:%M} UTC, and can no longer renew "
                f"itself; on the host: ferryman enroll {found.name}"
            )
        csr = request(self._root, self._device).csr.encode()
        try:
            self._link.publish(Message(topic=topics.csr(self._device), payload=csr), self._refused)
        except LinkError:
            return min(wait_s, self._ask_first_s)
        if self._asked:
            log.warning(
                "certificate: no answer to the request to renew it, asked again; it expires at %s UTC; does `ferryman "
                "ca serve` run?",
                f"{found.not_after:%Y-%m-%d %H:%M}",
            )
        self._asked += 1
        return wait_s

    def _try(self, stop: threading.Event) -> float:
        """Connect with the new certificate; where the broker does not let it in, the old one goes on."""
        folder = folder_of(self._root)
        old = self._link.broker
        new = of_file(old, folder / NEXT)
        self._link.reconnect(new)
        if not _wait(lambda: self._link.connected_by == new, self._trial_s, stop):
            return self._go_back(of_file(old, folder / CURRENT), stop)
        promote(self._root)
        self._link.broker = of_file(old, folder / CURRENT)  # the same bytes; for the next connection
        found = current(self._root)
        if found is not None:
            log.info("certificate: renewed, serial %s, until %s UTC", found.serial, f"{found.not_after:%Y-%m-%d %H:%M}")
        return self._look_s

    def _go_back(self, broker: BrokerConfig, stop: threading.Event) -> float:
        """The old certificate goes on; where it is let in, the new one is of no use, and another is asked for later."""
        problem = self._link.problem
        self._link.reconnect(broker)
        if stop.is_set():
            return 0.0
        log.warning("certificate: not connected with the renewed one (%s); the old one goes on", problem)
        if not _wait(lambda: self._link.connected_by == broker, self._trial_s, stop):
            return self._look_s  # the broker may be away, and the new one as good as ever
        discard_renewal(self._root)
        return max(self._look_s, ASK_CAP_S)

    def _refused(self, problem: str | None) -> None:
        if problem is not None:
            log.warning("certificate: the broker refuses requests to renew it: %s; see its access rules", problem)

    def _on_answer(self, delivery: Delivery) -> None:
        if len(delivery.payload) > PEM_MAX_BYTES or delivery.retained:
            log.warning("certificate: an answer of %d bytes ignored", len(delivery.payload))
            return
        self._answer = delivery.payload
        self._changed.set()


def _wait(condition: Callable[[], bool], timeout_s: float, stop: threading.Event) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if stop.is_set() or time.monotonic() > deadline:
            return False
        stop.wait(_POLL_S)
    return True


def renewal_of(device: str, root: Path, link: Link) -> Renewal | None:
    """What renews the identity that `link` uses; None: it is not the device's own, or cannot be renewed here.

    Raises:
        IdentityError: the identity is another device's, or damaged.
    """
    if link.broker.tls_cert != str(folder_of(root) / CURRENT):
        return None
    found = current(root)
    if found is None or found.name != device:
        raise IdentityError(
            f"the identity at {folder_of(root)} is that of {found.name if found else 'nobody'}, and this is {device}; "
            "start the agent with --device as it is enrolled, or enroll it anew"
        )
    return Renewal(device, root, link)

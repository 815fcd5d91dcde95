"""What everybody may know of a device: its status, from the birth of a connection to its death.

As bdSeq in Sparkplug B (3.0, section 6.4.7), each connection has a number that both carry, so that a late death of an
earlier connection is told from news.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping

import ferryman
from ferryman.devices import topics
from ferryman.devices.agent.modes import Mode
from ferryman.devices.agent.outbox import Counts, Outbox
from ferryman.devices.agent.recorder import Recorder
from ferryman.devices.mqtt import Link, Message
from ferryman.profiler.conditions import read_conditions
from ferryman.profiler.standing import standing
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.slot import Slot
from ferryman.runtime.session import INTERPRETERS, installed

log = logging.getLogger(__name__)

AGAIN_S = 900.0
"""A status is said again so often: a broker that was killed may have gone back to an older one, or to none."""


class Presence:
    """One device's; `death` is what its link takes for the will of each connection."""

    def __init__(
        self,
        device: str,
        labels: Mapping[str, str],
        model: str,
        outbox: Outbox,
        recorder: Recorder,
        challenge: Callable[[], str] = lambda: "",
        mode: Callable[[], Mode] = lambda: "full",
    ) -> None:
        self._topic = topics.status(device)
        self._device, self._labels, self._model = device, dict(labels), model
        self._outbox, self._recorder = outbox, recorder
        self._challenge, self._mode = challenge, mode
        self._birth = 0
        self._telling = threading.Lock()
        """One status after another: what is older shall not come last, and stay."""
        self._again_at = 0.0
        self.storage = ""
        """For `Status.storage`."""

    def death(self) -> Message:
        """For a new connection, which is counted; what queries find devices by is in it, for those that are off."""
        try:
            self._birth = self._outbox.next_birth()
        except DeviceError as error:
            self._birth += 1  # the disk is full: who has seen this agent's last birth is told all the same
            log.warning("the connection is not counted on disk: %s", error)
        return self._dead()

    def farewell(self) -> Message:
        """The death of this connection where the device goes offline on purpose, which a will cannot know."""
        return self._dead(mode="offline")

    def _dead(self, mode: str = "") -> Message:
        dead = Status(
            device=self._device,
            online=False,
            birth=self._birth,
            boot=self._outbox.boot,
            labels=self._labels,
            model=self._model,
            challenge=self._challenge(),  # so that what waits for a device that is away is signed, too
            mode=mode,
        )
        return Message(topic=self._topic, payload=encode(dead), retain=True)

    def counts(self) -> Counts:
        """What is in the outbox; nothing where it cannot be read."""
        try:
            return self._outbox.counts()
        except DeviceError as error:
            log.debug("not counted: %s", error)
            return Counts(0, 0, 0)

    def announce(self, link: Link, slot: Slot | None, answers: str | None) -> None:
        """Publish that it is there, and how."""
        with self._telling:
            self._again_at = time.monotonic() + AGAIN_S * random.uniform(0.8, 1.0)  # noqa: S311  # spreads a fleet
            try:
                link.publish(Message(topic=self._topic, payload=encode(self.status(slot, answers)), retain=True))
            except (LinkError, DeviceError) as error:
                log.debug("status not announced: %s", error)

    def is_due(self, now_s: float) -> bool:
        """Whether it was said so long ago that it is to be said again; `now_s` is monotonic."""
        return now_s >= self._again_at

    def status(self, slot: Slot | None, answers: str | None) -> Status:
        """As it is now.

        Args:
            slot: what serves.
            answers: the variant that answers, where it is another than the slot says.
        """
        counts = self.counts()
        runtimes: tuple[RuntimeName, ...] = tuple(INTERPRETERS)
        return Status(
            device=self._device,
            online=True,
            birth=self._birth,
            boot=self._outbox.boot,
            ferryman=ferryman.__version__,
            package_sha256=slot.package_sha256 if slot else None,
            package_name=slot.package_name if slot else None,
            release=slot.release if slot else None,
            answers=answers or (slot.answers if slot else None),
            interpreters={name: version for r in runtimes for name, version in installed(r).items()},
            standing=standing(read_conditions({})),
            labels=self._labels,
            model=self._model,
            challenge=self._challenge(),
            mode=self._mode(),
            outbox_pending=counts.records + self._recorder.waiting,
            outbox_dropped=counts.dropped + self._recorder.lost,
            storage=self.storage,
        )

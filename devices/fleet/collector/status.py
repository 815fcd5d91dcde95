"""What a device says of itself, read and checked; imports no database, for rollouts read it too."""

from __future__ import annotations

from functools import lru_cache

from ferryman.devices import topics
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode

MESSAGE_MAX_BYTES = (1 << 20) + 4096
"""Of one message to the collector: the longest body of an outbox, and its envelope."""

device_of = lru_cache(maxsize=1 << 16)(topics.device_of)
"""`topics.device_of`; most messages are of devices that sent some before."""


def parse_status(topic: str, payload: bytes) -> Status:
    """Read and check one status message.

    Raises:
        ValueError: it cannot be taken; the message is the reason that goes into quarantine.
    """
    device = device_of(topic)
    check_size(payload)
    status = decode(payload, Status)
    check_device(device, status.device, "status")
    return status


def check_size(payload: bytes) -> None:
    """Refuse what is too long.

    Raises:
        ValueError: it is.
    """
    if len(payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes, at most {MESSAGE_MAX_BYTES} are taken")


def check_device(device: str, named: str, what: str) -> None:
    """A device speaks for itself alone: brokers let it write to its own topics only.

    Raises:
        ValueError: the message names another than the topic.
    """
    if named != device:
        raise ValueError(f"the topic says device {device!r}, the {what} {named!r}")

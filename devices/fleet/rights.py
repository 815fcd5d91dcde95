"""Finds out whether the broker lets a host do its work: what its rules do not allow, it drops without another word."""

from __future__ import annotations

import logging

from ferryman.devices import topics
from ferryman.devices.expiry import shown_to
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import LinkError

log = logging.getLogger(__name__)

NOBODY = "$nobody"
"""No device can have this name."""
_REFUSED = "not authorized"  # reason code 0x87, as paho names it


def check_right(link: Link, role: str, leaf: str) -> None:
    """On each connection, write a `leaf` to nobody, and log an error where the broker refuses it (MQTT 5 alone tells).

    Args:
        link: not started yet.
        role: whose work that is, as `ferryman ca client --role` calls it.
        leaf: of a device's topics.
    """

    def said(problem: str | None) -> None:
        if problem is not None and _REFUSED in problem.lower():
            found = shown_to(link.broker)
            log.error(
                "the broker does not let %s write a device's %s, and so nothing of its work is done: is this the "
                "certificate of a host with the role %s, and are the broker's rules written since (ferryman ca acl), "
                "put in place and read (restart it)?",
                found.name if found is not None else "us",
                leaf,
                role,
            )

    def ask() -> None:
        try:
            link.publish(Message(topic=f"{topics.PREFIX}/{NOBODY}/{leaf}", payload=b""), said)
        except LinkError as error:
            log.debug("not asked: %s", error)  # asked on the next connection

    link.on_ready(ask)

"""The MQTT topics (docs/telemetry.md); every one is built and taken apart here."""

from __future__ import annotations

import re

from ferryman.runtime.contracts.errors import CallerError

PREFIX = "ferryman/v1"
ALL_STATUS = f"{PREFIX}/+/status"
ALL_TELEMETRY = f"{PREFIX}/+/telemetry"
ALL_DESIRED = f"{PREFIX}/+/desired"
ALL_REPORTED = f"{PREFIX}/+/reported"
ALL_CSR = f"{PREFIX}/+/csr"
ALERTS = "ferryman/alerts"
"""Retained, one level below by device and rule: what the collector raised and has not resolved."""

REQUEST_MAX_BYTES = 64 << 20
"""What one request may hold, and all that wait at an agent together."""

_LEAVES = {"status", "telemetry", "desired", "reported", "csr"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def is_name(name: str) -> bool:
    """Whether `name` can stand for a device or client as one level of a topic."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str, what: str = "device") -> str:
    """Return `name`.

    Raises:
        CallerError: it is not one level of a topic (no `/`, `+`, `#`, nothing to be escaped).
    """
    if not is_name(name):
        raise CallerError(f"{what} {name!r}: expected 1 to 64 of A-Z a-z 0-9 _ -; choose another name")
    return name


def status(device: str) -> str:
    """Retained `Status`: birth and last will."""
    return f"{PREFIX}/{check_name(device)}/status"


def telemetry(device: str) -> str:
    """`Envelope`s of one device."""
    return f"{PREFIX}/{check_name(device)}/telemetry"


def receipt(device: str) -> str:
    """`Receipt`s for one device."""
    return f"{PREFIX}/{check_name(device)}/receipt"


def desired(device: str) -> str:
    """Retained `Desired`: what one device should run."""
    return f"{PREFIX}/{check_name(device)}/desired"


def reported(device: str) -> str:
    """Retained `Reported`: what it runs, and how far it is."""
    return f"{PREFIX}/{check_name(device)}/reported"


def request(device: str) -> str:
    """`Request`s to one device."""
    return f"{PREFIX}/{check_name(device)}/request"


def response(device: str, client: str) -> str:
    """`Response`s of one device to one client."""
    return f"{PREFIX}/{check_name(device)}/response/{check_name(client, 'client')}"


def csr(device: str) -> str:
    """PEM of a certificate signing request: a device asks for the renewal of its own certificate."""
    return f"{PREFIX}/{check_name(device)}/csr"


def certificate(device: str) -> str:
    """PEM of the certificate that answers it."""
    return f"{PREFIX}/{check_name(device)}/certificate"


def live(device: str) -> str:
    """Retained `Sample` of this moment, never of the past, for dashboards that subscribe."""
    return f"{PREFIX}/{check_name(device)}/live"


def alert(device: str, rule: str) -> str:
    """Retained `Alert`; empty when it is resolved."""
    return f"{ALERTS}/{check_name(device)}/{check_name(rule, 'rule')}"


def is_response(topic: str, device: str) -> bool:
    """Whether `topic` is a response topic of `device`: the only ones an agent answers to."""
    head = f"{PREFIX}/{device}/response/"
    return topic.startswith(head) and is_name(topic[len(head) :])


def device_of(topic: str) -> str:
    """Name the device that a topic of devices' own belongs to.

    Raises:
        ValueError: not a topic of ours, or a device name nobody may have.
    """
    device, _, leaf = topic.removeprefix(f"{PREFIX}/").partition("/")
    if not topic.startswith(f"{PREFIX}/") or leaf not in _LEAVES or not is_name(device):
        raise ValueError(f"topic {topic!r} is not {PREFIX}/<device>/ with one of {', '.join(sorted(_LEAVES))}")
    return device

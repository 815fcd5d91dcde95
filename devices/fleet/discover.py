"""Devices on this network, by mDNS: what offers to be one, as strangers say it; nothing here is trusted or written.

Anybody on the network may answer, anything and as often as they like: answers are counted, cut and escaped before they
are looked at.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from ferryman.devices import topics
from ferryman.runtime.contracts.errors import CallerError, LinkError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.say import printable

if TYPE_CHECKING:
    from zeroconf import Zeroconf

SERVICES: tuple[tuple[str, str], ...] = (
    ("ferryman", "_ferryman._tcp.local."),
    ("ssh", "_ssh._tcp.local."),
    ("mqtt", "_mqtt._tcp.local."),
    ("mqtts", "_secure-mqtt._tcp.local."),
    ("adb", "_adb-tls-connect._tcp.local."),
)
"""What is browsed for: a ferryman device (its provisioning installs the advertisement), SSH, brokers, phones."""
ANSWERS_MAX = 1000
"""Of all services together; those that come later are counted and not looked at."""
NAME_MAX_CHARS = 64
TEXT_MAX_CHARS = 128
TEXTS_MAX = 16
ADDRESSES_MAX = 8
_RESOLVE_S = 1.0


class Answer(Record, kw_only=True):
    """One service, as it was advertised: cut, and without what could steer a terminal."""

    service: str
    """A name of SERVICES."""
    instance: str
    host: str
    """`kitchen.local`."""
    addresses: tuple[str, ...]
    port: int
    texts: dict[str, str] = msgspec.field(default_factory=dict)


class Found(Record, kw_only=True):
    """Everything that one host advertises."""

    host: str
    addresses: tuple[str, ...]
    services: dict[str, int]
    """Name -> port."""
    device: str = ""
    """What it says its name is, where that is a name a device can have; empty: it says none."""
    version: str = ""
    """Of its ferryman, as it says."""

    @property
    def suggested(self) -> str:
        """A name for it: its own, or made of its host's; empty: neither makes one."""
        made = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in self.host.partition(".")[0])
        return self.device or (made[:NAME_MAX_CHARS] if topics.is_name(made[:NAME_MAX_CHARS]) else "")


class Discovery(Record):
    """What came."""

    hosts: tuple[Found, ...]
    left_out: int
    """Answers past ANSWERS_MAX, and those that said nothing of use."""


def discover(seconds: float = 3.0, *, interfaces: tuple[str, ...] = ()) -> Discovery:
    """Listen for so long.

    Args:
        seconds: how long.
        interfaces: addresses of this machine to ask on; none: all.

    Raises:
        LinkError: no network can be asked.
        ModuleNotFoundError: zeroconf is not installed.
    """
    from zeroconf import InterfaceChoice, ServiceBrowser, ServiceStateChange, Zeroconf

    names: dict[tuple[str, str], None] = {}
    lock = threading.Lock()
    over = 0

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:  # noqa: ARG001  # zeroconf calls by name
        nonlocal over
        if state_change is ServiceStateChange.Removed:
            return
        with lock:
            if len(names) < ANSWERS_MAX:
                names.setdefault((service_type, name))
            elif (service_type, name) not in names:
                over += 1

    begin = time.monotonic()
    try:
        zeroconf = Zeroconf(interfaces=list(interfaces) or InterfaceChoice.All)
    except OSError as error:
        raise LinkError(
            f"mDNS cannot be asked: {error}; is there a network, and does it let multicast through?"
        ) from error
    try:
        browser = ServiceBrowser(zeroconf, [service for _, service in SERVICES], handlers=[heard])
        time.sleep(max(0.0, seconds))
        browser.cancel()
        with lock:
            asked = list(names)
        deadline = begin + seconds + _RESOLVE_S
        answers = [answer for one in asked if (answer := _resolve(zeroconf, *one, deadline)) is not None]
    finally:
        zeroconf.close()
    return Discovery(hosts=by_host(answers), left_out=over + len(asked) - len(answers))


def _resolve(zeroconf: Zeroconf, service_type: str, name: str, deadline: float) -> Answer | None:
    """Where a service is; from what came along with its name, and asked for only while there is time."""
    from zeroconf import BadTypeInNameException, ServiceInfo

    try:
        info = ServiceInfo(service_type, name)
        left_ms = 1000 * (deadline - time.monotonic())
        known = info.load_from_cache(zeroconf) or (left_ms > 0 and info.request(zeroconf, min(left_ms, 1000.0)))
        if not known or not info.server:
            return None
        return read_answer(
            service={kind: short for short, kind in SERVICES}[service_type],
            instance=name.removesuffix(f".{service_type}"),
            host=info.server,
            addresses=info.parsed_addresses(),
            port=info.port or 0,
            properties=info.properties.items(),
        )
    except (BadTypeInNameException, KeyError, ValueError, UnicodeError, OSError):
        return None  # whoever says this means no device


def read_answer(
    *,
    service: str,
    instance: str,
    host: str,
    addresses: Iterable[str],
    port: int,
    properties: Iterable[tuple[bytes | None, bytes | None]],
) -> Answer | None:
    """An answer, cut and made harmless; None: it says nothing of use."""
    found = [one for address in list(addresses)[:ADDRESSES_MAX] if (one := _address(address))]
    host = _clean(host.rstrip("."), NAME_MAX_CHARS).lower()
    if not found or not host or not 0 < port <= 65535:  # noqa: PLR2004  # ports
        return None
    texts: dict[str, str] = {}
    for key, value in list(properties)[:TEXTS_MAX]:
        name = _clean((key or b"").decode(errors="replace"), NAME_MAX_CHARS)
        texts.setdefault(name, _clean((value or b"").decode(errors="replace"), TEXT_MAX_CHARS))
    return Answer(
        service=service,
        instance=_clean(instance, NAME_MAX_CHARS),
        host=host,
        addresses=tuple(found),
        port=port,
        texts=texts,
    )


def _clean(text: str, most: int) -> str:
    return printable(text[:most]).strip()


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return ""


def by_host(answers: Iterable[Answer]) -> tuple[Found, ...]:
    """One entry a host; of a service that a host offers twice, the first counts."""
    hosts: dict[str, list[Answer]] = {}
    for answer in answers:
        hosts.setdefault(answer.host, []).append(answer)
    return tuple(_joined(host, hosts[host]) for host in sorted(hosts))


def _joined(host: str, answers: list[Answer]) -> Found:
    services: dict[str, int] = {}
    for answer in answers:
        services.setdefault(answer.service, answer.port)
    own = next((answer.texts for answer in answers if answer.service == "ferryman"), {})
    device = own.get("device", "")
    return Found(
        host=host,
        addresses=tuple(dict.fromkeys(address for answer in answers for address in answer.addresses)),
        services={name: services[name] for name, _ in SERVICES if name in services},
        device=device if topics.is_name(device) else "",
        version=own.get("version", ""),
    )


def settings_of(found: Found, *, user: str, broker: str | None = None) -> dict[str, str | int]:
    """What the devices file would say of it: SSH where it offers that, else adb.

    Raises:
        CallerError: it offers neither.
    """
    settings: dict[str, str | int]
    if (port := found.services.get("ssh") or found.services.get("ferryman")) is not None:
        settings = {"host": found.host, "user": user}
        if port != 22:  # noqa: PLR2004  # SSH's port
            settings["port"] = port
    elif (adb := found.services.get("adb")) is not None:
        settings = {"adb": f"{found.addresses[0]}:{adb}"}
    else:
        offers = ", ".join(found.services)
        raise CallerError(f"{found.host} offers {offers} and neither SSH nor adb: nothing to reach a device by")
    if broker is not None:
        settings["broker"] = broker
    return settings

"""The broker's access rules: a device writes its own topics and reads its own commands, each host what its role takes.

In mosquitto's format. `%u` is the name in the certificate, so that a device needs no line of its own; what no line
allows is denied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ferryman.devices import topics
from ferryman.devices.topics import PREFIX
from ferryman.runtime.contracts.errors import CallerError

DEVICE_WRITES = ("status", "telemetry", "reported", "response/+", "csr", "live")
DEVICE_READS = ("request", "receipt", "desired", "certificate")

_ALERTS = f"{topics.ALERTS}/#"
ROLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "collector": (
        ("read", f"{PREFIX}/+/telemetry"),
        ("read", f"{PREFIX}/+/status"),
        ("read", f"{PREFIX}/+/reported"),
        ("write", f"{PREFIX}/+/receipt"),
        ("readwrite", _ALERTS),
    ),
    "operator": (
        ("write", f"{PREFIX}/+/request"),
        ("read", f"{PREFIX}/+/response/{{name}}"),
        ("read", f"{PREFIX}/+/status"),
    ),
    "rollout": (
        ("readwrite", f"{PREFIX}/+/desired"),
        ("read", f"{PREFIX}/+/reported"),
        ("read", f"{PREFIX}/+/status"),
    ),
    "viewer": (
        ("read", f"{PREFIX}/+/live"),
        ("read", f"{PREFIX}/+/status"),
        ("read", _ALERTS),
    ),
    "ca": (
        ("read", f"{PREFIX}/+/csr"),
        ("write", f"{PREFIX}/+/certificate"),
    ),
}
"""Role -> (right, topic); `{name}` is the host's own name."""

_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_SPARKPLUG_VIEWER = (("read", "spBv1.0/#"), ("write", "spBv1.0/STATE/+"))


def _home_assistant(prefix: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What devices and viewers may, for devices that announce themselves (`ferryman.devices.agent.homeassistant`)."""
    if not _PREFIX.fullmatch(prefix):
        raise CallerError(f"Home Assistant: expected a prefix such as homeassistant, found {prefix!r}")
    status = f"{prefix}/status"
    device = [("write", f"{prefix}/device/%u/config"), ("read", status)]
    return device, [("read", f"{prefix}/#"), ("write", status)]


def _sparkplug_device(group: str) -> list[tuple[str, str]]:
    node = [("write", kind) for kind in ("NBIRTH", "NDATA", "NDEATH")]
    below = [("write", kind) for kind in ("DBIRTH", "DDATA", "DDEATH")]
    return [
        *((right, f"spBv1.0/{group}/{kind}/%u") for right, kind in (*node, ("read", "NCMD"))),
        *((right, f"spBv1.0/{group}/{kind}/%u/+") for right, kind in (*below, ("read", "DCMD"))),
        ("read", "spBv1.0/STATE/+"),
    ]


def write_acl(
    hosts: Mapping[str, Sequence[str]],
    denied: Sequence[str] = (),
    *,
    home_assistant: str | None = None,
    sparkplug_group: str | None = None,
) -> str:
    """The rules as mosquitto reads them.

    Args:
        hosts: name -> roles.
        denied: names whose certificates are revoked: a session that is still open loses all rights by this.
        home_assistant: prefix under which devices announce themselves to Home Assistant, and viewers see that.
        sparkplug_group: devices publish Sparkplug B payloads in this group, and viewers see those.

    Raises:
        CallerError: a name, the prefix or the group cannot stand in a topic.
    """
    lines = ["# Written by `ferryman ca broker`; what no line allows is denied."]
    lines += [f"pattern write {PREFIX}/%u/{leaf}" for leaf in DEVICE_WRITES]
    lines += [f"pattern read {PREFIX}/%u/{leaf}" for leaf in DEVICE_READS]
    more: list[tuple[str, str]] = []
    if home_assistant is not None:
        device, viewer = _home_assistant(home_assistant)
        lines += [f"pattern {right} {topic}" for right, topic in device]
        more += viewer
    if sparkplug_group is not None:
        topics.check_name(sparkplug_group, "Sparkplug group")
        lines += [f"pattern {right} {topic}" for right, topic in _sparkplug_device(sparkplug_group)]
        more += _SPARKPLUG_VIEWER
    for name in sorted(set(hosts) - set(denied)):
        lines += ["", f"user {topics.check_name(name, 'host')}"]
        rights = dict.fromkeys(right for role in hosts[name] for right in ROLES[role])
        extra = more if "viewer" in hosts[name] else []
        lines += [f"topic {right} {topic.format(name=name)}" for right, topic in (*rights, *extra)]
    for name in sorted(set(denied)):
        lines += ["", f"user {topics.check_name(name)}", "topic deny #"]
    return "\n".join(lines) + "\n"

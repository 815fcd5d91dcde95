"""What a device is called by beside its name: `site=lab`; devices announce labels, and the devices file adds some."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ferryman.runtime.contracts.errors import CallerError

RESERVED = ("all", "model", "name")
"""Words of their own in a query (see `ferryman.devices.fleet.rollout.query`)."""
LABELS_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", re.ASCII)
_VALUE = re.compile(r"(?![\s=])[^,;|*\x00-\x1f\x7f]{1,200}(?<!\s)")


def check_labels(labels: Mapping[str, str]) -> None:
    """See that queries can name all of them.

    Raises:
        CallerError: one has a name or value that no query could hold; the message names it. Or they are too many.
    """
    if len(labels) > LABELS_MAX:
        raise CallerError(f"a device has at most {LABELS_MAX} labels, found {len(labels)}")
    for name, value in labels.items():
        if not _NAME.fullmatch(name) or name in RESERVED or not _VALUE.fullmatch(value):
            raise CallerError(
                f"label {name[:80]}={value[:210]}: expected NAME=VALUE, the name of 1 to 64 of A-Z a-z 0-9 . _ - / and "
                f"none of {', '.join(RESERVED)}, the value of 1 to 200 characters without , ; | * and without blanks "
                "around it or a = before it"
            )


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Read `site=lab`, `stage=canary`, ...

    Raises:
        CallerError: one is no label, or is given twice.
    """
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in labels:
            raise CallerError(f"label {text!r}: " + ("it is given twice" if equals else "expected NAME=VALUE"))
        labels[name] = value
    check_labels(labels)
    return labels

"""The base of every record that crosses a boundary: frozen, keyword-only, validated when decoded.

Readers ignore unknown fields (a newer writer may add some); a changed meaning raises the record's schema number.
"""

from __future__ import annotations

from typing import Any, TypeVar, dataclass_transform

import msgspec


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class _RecordMeta(msgspec.StructMeta):
    """Makes every record keyword-only; msgspec inherits `frozen` and not `kw_only`."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> type:  # noqa: ANN401
        options.setdefault("kw_only", True)
        made: type = super().__new__(cls, name, bases, namespace, **options)
        return made


class Record(msgspec.Struct, metaclass=_RecordMeta, frozen=True):
    """A frozen record; decode with `decode`, encode with `encode` (canonical: sorted keys)."""


class Unavailable(Record, tag="unavailable"):
    """What could not be measured, and why; never a zero."""

    reason: str


R = TypeVar("R")


def encode(record: Record) -> bytes:
    """Canonical JSON: keys sorted, no spaces, the same bytes for the same record."""
    return msgspec.json.encode(record, order="sorted")


def decode(data: bytes, kind: type[R]) -> R:
    """Decode and validate JSON.

    Raises:
        ValueError: not JSON, or a field is missing or of the wrong type; the message holds the path to it.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error

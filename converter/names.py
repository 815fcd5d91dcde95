"""Names of forms: each says one thing in one way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record


class _Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_Named)


def by_name(several: Iterable[N], what: str) -> dict[str, N]:
    """Things by their name.

    Raises:
        ValueError: two have one name.
    """
    found: dict[str, N] = {}
    for one in several:
        if one.name in found:
            raise ValueError(f"there are two {what} named {one.name!r}")
        found[one.name] = one
    return found


def check_types(record: Record, what: str) -> None:
    """See that a record that someone made holds what its fields say.

    Raises:
        CallerError: it does not.
    """
    try:
        msgspec.convert(msgspec.to_builtins(record), type(record))
    except (msgspec.ValidationError, TypeError) as error:
        raise CallerError(f"this {what} cannot be: {error}") from error


def require_own_name(given: str, own: str) -> None:
    """See that what was read from a name is called so.

    Args:
        given: the name.
        own: of what was read.

    Raises:
        CallerError: it says something twice, what is so anyway, or things in another order.
    """
    if own != given and sorted(own.split("-")) != sorted(given.split("-")):
        raise CallerError(f"form {given!r} says something twice, or what is so anyway; write {own!r}")
    if own != given:
        raise CallerError(f"form {given!r} has its options in another order; write {own!r}")

"""Names of forms: each says one thing in one way."""

from __future__ import annotations

from ferryman.runtime.contracts.errors import CallerError


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

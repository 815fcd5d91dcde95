"""Arguments of questions, checked before the store is asked: a wrong one is named."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ferryman.runtime.contracts.errors import CallerError


def check_texts(**given: object) -> None:
    """Each is a text or None.

    Raises:
        CallerError: one is not, or has characters that a database refuses; the message names it.
    """
    for name, one in given.items():
        if one is None:
            continue
        if not isinstance(one, str):
            raise CallerError(f"{name} is a text, found {shown(one)}")
        if "\0" in one or any("\ud800" <= letter <= "\udfff" for letter in one):
            raise CallerError(f"{name} has characters that are none in UTF-8, or NUL: {shown(one)}")


def check_names(**given: object) -> None:
    """Each is a text.

    Raises:
        CallerError: as above.
    """
    for name, one in given.items():
        if one is None:
            raise CallerError(f"{name} is a text, found None")
    check_texts(**given)


def check_several(name: str, given: object) -> None:
    """It is one or more texts in a row.

    Raises:
        CallerError: it is not.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise CallerError(f"{name} are texts in a list, found {shown(given)}")
    check_names(**{f"{name}[{at}]": one for at, one in enumerate(given)})


def checked_limit(limit: object) -> int | None:
    """So many rows at most; None: all.

    Raises:
        CallerError: it is no whole number of 0 or more.
    """
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise CallerError(f"limit is a whole number of 0 or more, or None for all; found {shown(limit)}")
    return min(limit, sys.maxsize - 1)


def shown(one: object) -> str:
    """The beginning of it in words."""
    try:
        return f"{one!r:.100}"
    except Exception:  # noqa: BLE001  # such as a number with too many digits
        return f"a {type(one).__name__}"

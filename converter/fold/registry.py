"""The ways there are to tell how much blocks matter."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.converter.fold.importance import Gates, Importance, Similarity
from ferryman.runtime.contracts.errors import CallerError


def register(several: Sequence[Importance]) -> dict[str, Importance]:
    """Ways by name.

    Raises:
        ValueError: two have one name.
    """
    found: dict[str, Importance] = {}
    for one in several:
        if one.name in found:
            raise ValueError(f"there are two ways named {one.name!r}")
        found[one.name] = one
    return found


IMPORTANCES = register((Gates(), Similarity()))


def find_importance(name: str) -> Importance:
    """The way of a name.

    Raises:
        CallerError: there is none.
    """
    if name not in IMPORTANCES:
        raise CallerError(f"importance {name!r} is not known; there are: {', '.join(IMPORTANCES)}")
    return IMPORTANCES[name]

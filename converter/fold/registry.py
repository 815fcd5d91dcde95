"""The ways there are to tell how much blocks matter."""

from __future__ import annotations

from ferryman.converter.fold.importance import Gates, Importance, Similarity
from ferryman.converter.names import by_name
from ferryman.runtime.contracts.errors import CallerError

IMPORTANCES: dict[str, Importance] = by_name((Gates(), Similarity()), "ways")


def find_importance(name: str) -> Importance:
    """The way of a name.

    Raises:
        CallerError: there is none.
    """
    if name not in IMPORTANCES:
        raise CallerError(f"importance {name!r} is not known; there are: {', '.join(IMPORTANCES)}")
    return IMPORTANCES[name]

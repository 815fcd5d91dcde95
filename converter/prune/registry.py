"""The criteria there are."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.converter.prune.criteria import Criterion, Lasso, Magnitude, Taylor
from ferryman.converter.prune.mfac import Mfac
from ferryman.converter.prune.relevance import Relevance
from ferryman.converter.prune.trajectory import Trajectory
from ferryman.runtime.contracts.errors import CallerError


def register(criteria: Sequence[Criterion]) -> dict[str, Criterion]:
    """Criteria by name.

    Raises:
        ValueError: two have one name.
    """
    found: dict[str, Criterion] = {}
    for one in criteria:
        if one.name in found:
            raise ValueError(f"there are two criteria named {one.name!r}")
        found[one.name] = one
    return found


CRITERIA = register((Magnitude(), Taylor(), Lasso(), Relevance(), Mfac(), Trajectory()))


def find_criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        CallerError: there is none.
    """
    if name not in CRITERIA:
        raise CallerError(f"criterion {name!r} is not known; there are: {', '.join(CRITERIA)}")
    return CRITERIA[name]

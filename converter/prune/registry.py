"""The criteria there are."""

from __future__ import annotations

from ferryman.converter.names import by_name
from ferryman.converter.prune.criteria import Criterion, Lasso, Magnitude, Taylor
from ferryman.converter.prune.mfac import Mfac
from ferryman.converter.prune.relevance import Relevance
from ferryman.converter.prune.trajectory import Trajectory
from ferryman.runtime.contracts.errors import CallerError

CRITERIA: dict[str, Criterion] = by_name(
    (Magnitude(), Taylor(), Lasso(), Relevance(), Mfac(), Trajectory()), "criteria"
)


def find_criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        CallerError: there is none.
    """
    if name not in CRITERIA:
        raise CallerError(f"criterion {name!r} is not known; there are: {', '.join(CRITERIA)}")
    return CRITERIA[name]

"""Names of prunings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.prune.recipe import CRITERIA, UNITS, Pruning, check_pruning, is_pruned, parse_pruning
from ferryman.runtime.contracts.errors import CallerError


@given(
    percent=st.integers(1, 99), unit=st.sampled_from(UNITS), criterion=st.sampled_from(CRITERIA), erase=st.booleans(),
    align=st.sampled_from([0, 4, 8, 16]), plain=st.booleans(), oto=st.booleans(),
)  # fmt: skip
def test_a_name_says_all(**fields):
    pruning = Pruning(**fields)
    if pruning.oto and pruning.plain:
        with pytest.raises(CallerError, match="leave out plain"):
            parse_pruning(pruning.name)
        return
    assert is_pruned(pruning.name)
    assert parse_pruning(pruning.name) == pruning


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("thin-50flops", "pruned forms begin with pruned"),
        ("pruned", "needs its budget next"),
        ("pruned-50", "needs its budget next"),
        ("pruned-0flops", "1 to 99 percent"),
        ("pruned-05flops", "needs its budget next"),
        ("pruned-100flops", "1 to 99 percent"),
        ("pruned-\u0665\u0660flops", "needs its budget next"),
        ("pruned-taylor", "for example pruned-50flops"),
        ("pruned-50flops-fast", "option 'fast' is not known; there are, in this order: taylor, lasso, lrp"),
        ("pruned-50flops-magnitude", "option 'magnitude' is not known"),
        ("pruned-50flops-taylor-taylor", "says something twice"),
        ("pruned-50flops-taylor-lasso", "says something twice"),
        ("pruned-50flops-erase-taylor", "in another order; write 'pruned-50flops-taylor-erase'"),
        ("pruned-50flops-a5", "option 'a5' is not known"),
        ("pruned-50flops-", "option '' is not known"),
    ],
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_pruning(name)


@pytest.mark.parametrize(
    "fields", [{"percent": 0}, {"percent": 100}, {"percent": True}, {"percent": 50.5}, {"align": 3}]
)
def test_prunings_from_python_are_checked(fields):
    with pytest.raises(CallerError, match=r"cannot be|keeps 1 to 99"):
        check_pruning(Pruning(**{"percent": 50, "unit": "flops", **fields}))


def test_names_are_read_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ferryman.converter.prune.recipe import parse_pruning\n"
        "assert parse_pruning('pruned-50flops-taylor').needs_data"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

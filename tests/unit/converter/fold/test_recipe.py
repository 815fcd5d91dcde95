from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.fold.recipe import IMPORTANCES, Folding, check_folding, is_folded, parse_folding
from ferryman.converter.fold.registry import IMPORTANCES as THERE
from ferryman.converter.fold.registry import find_importance
from ferryman.converter.names import by_name
from ferryman.runtime.contracts.errors import CallerError

FOLDINGS = st.builds(
    Folding,
    group=st.integers(2, 99),
    drop=st.integers(0, 90),
    importance=st.sampled_from(IMPORTANCES),
    plain=st.booleans(),
)


@given(FOLDINGS)
def test_a_name_says_the_whole_recipe(folding):
    assert is_folded(folding.name)
    assert parse_folding(folding.name) == folding


@given(st.text("folded-123456789droplainsmu05", max_size=24))
def test_what_is_read_is_called_so(text):
    try:
        folding = parse_folding("folded-" + text)
    except CallerError:
        return
    assert folding.name == "folded-" + text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("merged", "folded forms begin with folded"),
        ("folded", "needs its group next"),
        ("folded-0", "needs its group next"),
        ("folded-drop25", "needs its group next"),
        ("folded-3-drop0", "option 'drop0' is not known; there are, in this order"),
        ("folded-3-drop95", "drops 0 to 90 percent"),
        ("folded-3-gates", "option 'gates' is not known"),
        ("folded-3-plain-drop25", "in another order; write 'folded-3-drop25-plain'"),
        ("folded-3-plain-plain", "says something twice"),
        ("folded-1", "does nothing"),
    ],
)
def test_other_names_are_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_folding(name)


@pytest.mark.parametrize(
    "folding", [Folding(group=0), Folding(group=True), Folding(group=2, drop=91), Folding(group=2, importance="size")]
)
def test_other_recipes_are_refused(folding):
    with pytest.raises(CallerError):
        check_folding(folding)


def test_all_importances_are_there():
    assert tuple(THERE) == IMPORTANCES
    with pytest.raises(CallerError, match="there are: gates, similar"):
        find_importance("size")
    with pytest.raises(ValueError, match="two ways"):
        by_name([find_importance("gates"), find_importance("gates")], "ways")

"""Names of nested forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.nested.recipe import Nesting, check_nesting, parse_nesting
from ferryman.runtime.contracts.errors import CallerError


@given(
    levels=st.sets(st.integers(1, 99), min_size=1, max_size=15),
    ordered=st.booleans(),
    align=st.sampled_from([0, 1, 4, 8, 16]),
)
def test_a_name_and_its_recipe_are_the_same_thing(levels, ordered, align):
    nesting = Nesting(levels=(*sorted(levels), 100), ordered=ordered, align=align)
    assert parse_nesting(nesting.name) == nesting


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nested", "2 to 16 levels"),
        ("nested-100", "2 to 16 levels"),
        ("nested-25-50", "the last is 100"),
        ("nested-50-25-100", "rising percents"),
        ("nested-0-100", "rising percents"),
        ("nested-50-50-100", "rising percents"),
        ("nested-" + "-".join(map(str, range(1, 17))) + "-100", "2 to 16 levels"),
        ("nested-50-100-a2", "option 'a2' is not known; there are, in this order: ordered, a8"),
        ("nested-50-100-a8-ordered", "nested-50-100-ordered-a8"),
        ("nested-050-100", "nested-50-100"),
        ("nested-\u0665\u0660-100", "is not known"),
        ("nest-50-100", "nested forms begin with nested"),
    ],
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_nesting(name)


def test_a_recipe_of_other_things_is_refused():
    with pytest.raises(CallerError, match="this nesting cannot be"):
        check_nesting(Nesting(levels=("50", 100)))

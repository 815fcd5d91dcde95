"""Names of recipes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.forms import find_form
from ferryman.converter.quantize.recipe import OBSERVERS, Budget, Recipe, check_recipe, is_quantized, parse_recipe
from ferryman.runtime.contracts.errors import CallerError


@given(
    bits=st.sampled_from([8, 4, 2]), group=st.sampled_from([0, 32, 64, 128]), asymmetric=st.booleans(),
    observer=st.sampled_from(OBSERVERS), gptq=st.booleans(), equalize=st.booleans(),
)  # fmt: skip
def test_a_name_says_all(**fields):
    recipe = Recipe(**fields)
    assert is_quantized(recipe.name)
    assert parse_recipe(recipe.name) == recipe


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("3bit", "form '3bit' is not known; quantized forms begin with int8, 4bit, 2bit or mixed"),
        ("4bit-fast", "option 'fast' is not known; there are, in this order: dynamic"),
        ("4bit-g32", "what is so anyway; write '4bit'"),
        ("4bit-gptq-gptq", "says something twice"),
        ("4bit-gptq-asym", "in another order; write '4bit-asym-gptq'"),
        ("int8-dynamic-minmax", "nothing for an observer to find"),
        ("4bit-", "option '' is not known"),
    ],
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_recipe(name)


NAMES = (
    *("int8", "4bit", "2bit", "int8-dynamic", "4bit-g64-asym-gptq", "2bit-channel-minmax-gptq"),
    *("mixed-3.5b", "mixed-2b", "mixed-8b-dynamic-g64-asym", "mixed-30db", "mixed-12.25db-channel-entropy-gptq"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_and_written_back(name):
    assert is_quantized(name)
    assert parse_recipe(name).name == name
    assert find_form(name).name == name
    assert find_form(parse_recipe(name)).name == name


def test_a_budget_is_bits_of_a_weight_or_decibels():
    assert parse_recipe("mixed-3.5b-gptq") == Recipe(bits=2, group=32, gptq=True, budget=Budget(value=3.5, unit="b"))
    assert parse_recipe("mixed-30db").budget == Budget(value=30, unit="db")
    assert Recipe(bits=2, group=32, budget=Budget(value=3, unit="b"), layers={"head": 8}).name == "mixed-3b"


@pytest.mark.parametrize(
    "name",
    ["mixed", "mixed-", "mixed-gptq", "mixed-1.9b", "mixed-9b", "mixed-b", "mixed-3", "mixed-0db", "mixed-\u0663b"],
)
def test_a_mixed_recipe_needs_a_budget_that_can_be(name):
    with pytest.raises(CallerError, match=r"needs its budget next: 2b to 8b.*for example mixed-3\.5b or mixed-30db"):
        find_form(name)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("mixed-3.50b", "mixed-3.5b"),
        ("mixed-3.5b-g32", "mixed-3.5b"),
        ("mixed-3.5b-gptq-g64", "mixed-3.5b-g64-gptq"),
        ("4bit-g32", "4bit"),
    ],
)
def test_there_is_one_name_for_a_recipe(name, better):
    with pytest.raises(CallerError, match=f"write '{better}'"):
        parse_recipe(name)


def test_a_budget_belongs_to_mixed_alone():
    with pytest.raises(CallerError, match=r"option '3\.5b' is not known"):
        parse_recipe("4bit-3.5b")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 3, "group": 32}, "this recipe cannot be"),
        ({"bits": 4, "group": 5}, "group is 0, 32, 64, 128; found 5"),
        ({"bits": 4, "group": -32}, "found -32"),
        ({"bits": 4, "group": True}, "cannot be|found True"),
        ({"bits": 4, "group": 32, "observer": "foo"}, "this recipe cannot be"),
        ({"bits": 4, "group": 32, "layers": {"0": 3}}, "this recipe cannot be"),
        ({"bits": 4, "group": 32, "layers": None}, "this recipe cannot be"),
        ({"bits": 2, "group": 32, "budget": Budget(value=3, unit="q")}, "this recipe cannot be"),
        ({"bits": 2, "group": 32, "budget": Budget(value=float("nan"), unit="b")}, "a budget in b is 2 to 8|cannot be"),
    ],
)
def test_recipes_from_python_are_checked(fields, said):
    with pytest.raises(CallerError, match=said):
        check_recipe(Recipe(**fields))

from __future__ import annotations

import pytest

from ferryman.converter.forms import find_form
from ferryman.converter.quantize.recipe import Budget, Recipe, is_quantized, parse_recipe
from ferryman.runtime.contracts.errors import CallerError

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

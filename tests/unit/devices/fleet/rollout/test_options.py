"""Options of a rollout as people write them: read, or told, before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.rollout.options import check_names, option_names
from ferryman.devices.fleet.rollout.records import Plan, Thresholds
from ferryman.devices.fleet.rollout.start import WINDOW_TIMEOUT_S, make_plan
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Window
from ferryman.runtime.contracts.slot import HealthRules
from tests.support.rollouts import NEW


def plan(**options):
    made = make_plan("net/2", NEW, "all", **options)
    assert decode(encode(made), Plan) == made
    return made


def test_what_the_command_line_takes_functions_take_too():
    made = plan(window="22:00-05:30", update_max_bytes="5MB", soak_s="10m", health={"window_s": 5, "errors_max": 0.5})
    assert made.window == Window(begin_minute=22 * 60, end_minute=5 * 60 + 30)
    assert (made.update_max_bytes, made.soak_s, made.ring_timeout_s) == (5_000_000, 600.0, WINDOW_TIMEOUT_S)
    assert made.health == HealthRules(window_s=5.0, errors_max=0.5)
    assert plan(thresholds={"failures_max": "2", "slower_max": None}).thresholds == Thresholds(
        failures_max="2", slower_max=None
    )
    assert plan(ring_timeout_s=5, update_max_bytes=7).update_max_bytes == 7


@dataclass
class Something:
    window_s: float = 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": "25:00-26:00"}, "is not a time of day"),
        ({"window": 5}, "is not a time of day"),
        ({"window": Window(begin_minute=0, end_minute=9999)}, "is not a time of day"),
        ({"update_max_bytes": "5 apples"}, "is not a size"),
        ({"update_max_bytes": 0}, "is not a size"),
        ({"update_max_bytes": 1.5}, "is not a size"),
        ({"health": {"windows": 5}}, "health has no option windows; there are: window_s, "),
        ({"health": {"window_s": "long"}}, "health: Expected `float`, got `str`"),
        ({"health": HealthRules(window_s="long")}, "health: Expected `float`, got `str`"),
        ({"health": HealthRules(window_s=math.nan)}, "health, window_s: expected a number from 0 on, found nan"),
        ({"health": {"slower_max": -1.0}}, "health, slower_max: expected a number"),
        ({"health": "good"}, "health: expected a HealthRules or its fields, found 'good'"),
        ({"health": Something()}, "health: expected a HealthRules"),
        ({"thresholds": Thresholds(slower_max=math.inf)}, "thresholds, slower_max"),
        ({"thresholds": {"failures_max": 3}}, "thresholds: Expected `str`, got `int`"),
        ({"rings": 3}, "rings 3: expected growing totals"),
        ({"pick": 3}, "pick 3 is not known"),
        ({"soak_s": "soon"}, "'soon' is not a duration"),
        ({"soak_s": math.nan}, "nan is not a duration"),
        ({"soak_s": -1}, "-1 is not a duration"),
        ({"ring_timeout_s": 0}, "are more than 0"),
        ({"parallel": "3"}, "an option of the rollout: Expected `int \\| null`, got `str` - at `\\$.parallel`"),
        ({"parallel": 0}, "are more than 0"),
        ({"manual": "yes"}, r"Expected `bool`, got `str` - at `\$.manual`"),
        ({"force": Something}, "an option of the rollout: Encoding objects"),
    ],
)
def test_what_makes_no_sense_is_told(options, says):
    with pytest.raises(CallerError, match=says):
        plan(**options)


def test_a_query_is_a_text():
    with pytest.raises(CallerError, match="a query is a text"):
        make_plan("net/2", NEW, ["d0"])


def test_an_option_that_there_is_not_is_told_with_those_there_are():
    names = option_names(make_plan, without=("broker", "now_ns"))
    assert names[0] == "rings"
    with pytest.raises(CallerError, match=r"a rollout has no option ring, sock; there are: rings, thresholds, "):
        check_names("a rollout has", ["sock", "rings", "ring"], names)


JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@given(
    st.sampled_from(option_names(make_plan, without=("now_ns",))), JUNK | st.dictionaries(st.text(), JUNK, max_size=2)
)
def test_whatever_is_given_is_a_plan_that_can_be_read_again_or_told(name, value):
    try:
        plan(**{name: value})
    except CallerError:
        return

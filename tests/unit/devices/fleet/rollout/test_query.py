from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ferryman.devices.fleet.rollout.query import Target, parse_query
from ferryman.devices.labels import check_labels, parse_labels
from ferryman.runtime.contracts.errors import CallerError

FLEET = (
    Target(name="kitchen", model="Raspberry Pi 4 Model B Rev 1.4", labels={"site": "lab", "stage": "canary"}),
    Target(name="pi-1", model="Raspberry Pi 5 Model B Rev 1.0", labels={"site": "lab"}),
    Target(name="pi-2", model="Raspberry Pi 5 Model B Rev 1.0", labels={"site": "roof"}),
    Target(name="phone", model="Pixel 7", labels={"owner": "Anna B."}),
)


def names(query):
    parsed = parse_query(query)
    return [one.name for one in FLEET if parsed.matches(one)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("all", "kitchen pi-1 pi-2 phone"),
        ("*", "kitchen pi-1 pi-2 phone"),
        ("kitchen", "kitchen"),
        ("pi-*", "pi-1 pi-2"),
        ("p*", "pi-1 pi-2 phone"),
        ("*i*", "kitchen pi-1 pi-2"),
        ("nobody", ""),
        ("site=lab", "kitchen pi-1"),
        ("site = lab", "kitchen pi-1"),
        ("site=*", "kitchen pi-1 pi-2"),
        ("site!=lab", "pi-2 phone"),
        ("site!=*", "phone"),
        ("model~raspberry pi 5", "pi-1 pi-2"),
        ("model=Pixel*", "phone"),
        ("owner~anna b", "phone"),
        ("name~-", "pi-1 pi-2"),
        ("name=all", ""),
        ("site=lab,stage=canary", "kitchen"),
        ("site=lab, !kitchen", "pi-1"),
        ("all,!pi-*", "kitchen phone"),
        ("!site=lab", "pi-2 phone"),
        ("!!site=lab", "kitchen pi-1"),
        ("! all", ""),
        ("site=roof | stage=canary", "kitchen pi-2"),
        ("site=roof;phone", "pi-2 phone"),
        ("site=lab,model~5|phone,owner=*", "pi-1 phone"),
        ("stage~", None),
        ("", None),
        ("  ", None),
        ("a,,b", None),
        ("a|", None),
        ("!", None),
        ("site=", None),
        ("=lab", None),
        ("pi 1", None),
        ("pi\n1", None),
        ("grüße", None),
        ("a" * 4001, None),
    ],
)
def test_queries(query, expected):
    if expected is None:
        with pytest.raises(CallerError, match="quer"):
            parse_query(query)
    else:
        assert names(query) == expected.split()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("site=lab,,pi", "query, character 10: expected a device's name.*\n  site=lab,,pi\n           \\^"),
        ("pi 1", "query, character 3: a name has letters"),
        ("pi|  site = ", "query, character 12: a value for site is missing"),
        ("a\t,\n,b", "query, character 5"),
    ],
)
def test_an_error_points_at_the_place(query, shown):
    with pytest.raises(CallerError, match=shown):
        parse_query(query)


def test_of_a_long_query_only_the_place_is_shown():
    text = "site=lab," * 300 + "pi 1" + ",site=lab" * 30
    with pytest.raises(CallerError) as caught:
        parse_query(text)
    message, shown, caret = str(caught.value).splitlines()
    assert message.startswith("query, character 2703: a name has letters")
    assert len(shown) <= 82
    assert shown[caret.index("^") - 2 :].startswith("pi 1")


@given(st.text(max_size=60) | st.text(alphabet="ab*=!~,;| -\n", max_size=40))
def test_any_text_is_a_query_or_told_where_it_is_none(text):
    try:
        query = parse_query(text)
    except CallerError as error:
        message, shown, caret = str(error).splitlines()
        place = caret.index("^") - 2
        assert 0 <= place <= len(text)
        assert message.startswith(f"query, character {place + 1}: ")
        assert len(shown) == len(text) + 2
    else:
        assert query.matches(FLEET[0]) in {True, False}


WORD = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=1, max_size=8).filter(
    lambda word: word != "all"
)


@given(st.lists(st.lists(st.tuples(st.booleans(), WORD), min_size=1, max_size=4), min_size=1, max_size=4), WORD)
def test_and_binds_closer_than_or_and_not_closest(alternatives, name):
    text = "|".join(",".join("!" * negated + word for negated, word in terms) for terms in alternatives)
    expected = any(all((word == name) != negated for negated, word in terms) for terms in alternatives)
    assert parse_query(text).matches(Target(name=name)) == expected


LABELS = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,10}", fullmatch=True), st.text(min_size=1, max_size=12), max_size=3
)


@given(LABELS)
@example({"0": "="})
def test_every_label_that_is_taken_can_be_asked_for(labels):
    try:
        check_labels(labels)
    except CallerError:
        return
    for name, value in labels.items():
        assert parse_query(f"{name}={value}").matches(Target(name="d", labels=labels))
        assert not parse_query(f"{name}!={value}").matches(Target(name="d", labels=labels))
        assert parse_query(f"{name}~{value}").matches(Target(name="d", labels=labels))
        assert not parse_query(f"{name}={value}").matches(Target(name="d"))


def test_labels_are_read_from_the_command_line():
    assert parse_labels(["site=lab", "rack=a=b"]) == {"site": "lab", "rack": "a=b"}
    for wrong in (["site"], ["site="], ["site=a,b"], ["site=*"], ["model=x"], ["a b=c"], ["a=1", "a=2"], ["a= b"]):
        with pytest.raises(CallerError, match="label"):
            parse_labels(wrong)


@given(st.text(alphabet="ab*", min_size=1, max_size=8), st.text(alphabet="ab", max_size=8))
def test_stars_stand_for_anything(pattern, value):
    expected = re.fullmatch(pattern.replace("*", ".*"), value) is not None
    assert parse_query(f"x={pattern}").matches(Target(name="d", labels={"x": value})) == expected


def test_many_stars_cost_no_more_than_a_few():
    assert not parse_query("*a" * 30 + "b").matches(Target(name="a" * 64))
    assert parse_query("*" * 3000).matches(Target(name="x" * 64))


@pytest.mark.parametrize(("marks", "matches"), [(3900, True), (3901, False)])
def test_many_negations_are_no_deep_recursion(marks, matches):
    assert parse_query(f"{'! ' * 10}{'!' * (marks - 10)}pi").matches(Target(name="pi")) is matches
    with pytest.raises(CallerError, match="expected a device's name"):
        parse_query("!" * marks)

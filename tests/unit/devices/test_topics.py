from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices import topics
from ferryman.runtime.contracts.errors import CallerError


def test_topics_are_as_documented():
    assert topics.status("pi-1") == "ferryman/v1/pi-1/status"
    assert topics.telemetry("pi-1") == "ferryman/v1/pi-1/telemetry"
    assert topics.receipt("pi-1") == "ferryman/v1/pi-1/receipt"
    assert topics.request("pi-1") == "ferryman/v1/pi-1/request"
    assert topics.response("pi-1", "me") == "ferryman/v1/pi-1/response/me"


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a" * 65, "pi 1", "pï", "a\n", "a\0", "../x", "$SYS"])
def test_a_name_that_could_reach_another_topic_is_refused(name):
    for build in (topics.status, topics.telemetry, topics.receipt, topics.request):
        with pytest.raises(CallerError, match="expected 1 to 64"):
            build(name)
    with pytest.raises(CallerError):
        topics.response("pi", name)
    assert not topics.is_response(f"ferryman/v1/pi/response/{name}", "pi")


def test_an_agent_answers_only_to_its_own_response_topics():
    assert topics.is_response(topics.response("pi", "me"), "pi")
    assert not topics.is_response(topics.response("other", "me"), "pi")
    assert not topics.is_response(topics.telemetry("pi"), "pi")


@given(st.text(max_size=80))
def test_any_topic_names_a_valid_device_or_is_refused(text):
    for topic in (text, f"ferryman/v1/{text}/telemetry", f"ferryman/v1/pi/{text}"):
        try:
            device = topics.device_of(topic)
        except ValueError:
            continue
        assert topic in {topics.status(device), topics.telemetry(device)}

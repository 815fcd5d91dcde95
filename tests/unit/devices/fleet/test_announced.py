from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices import topics
from ferryman.devices.fleet import announced as module
from ferryman.devices.fleet.announced import (
    TEXT_MAX_CHARS,
    Announced,
    Announcements,
    _Ears,
    join,
    marked,
    meant,
    of_status,
)
from ferryman.devices.fleet.inventory import MqttDevice
from ferryman.devices.fleet.rollout.query import parse_query
from ferryman.devices.labels import LABELS_MAX
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode

STATUS = Status(device="a", online=True)


def say(ears, device, payload=None, topic=None):
    payload = encode(Status(device=device, online=True)) if payload is None else payload
    ears(SimpleNamespace(topic=topic or f"{topics.PREFIX}/{device}/status", payload=payload))


def test_what_a_status_says_is_kept_cut():
    status = Status(
        device="pi",
        online=True,
        model="Pi " + "x" * 500,
        standing={"soc": "BCM2711" + "y" * 500},
        labels={f"label{n}": "v" for n in range(200)},
    )
    made = of_status(status)
    assert (len(made.model), len(made.soc), len(made.labels)) == (TEXT_MAX_CHARS, TEXT_MAX_CHARS, LABELS_MAX)
    assert made.soc.startswith("BCM2711")


@pytest.mark.parametrize("name", ["all", "local", "a b", "../x", "", "x" * 65])
def test_a_name_that_means_something_else_or_nothing_is_left_out(name):
    with pytest.raises(ValueError, match="cannot be a device's name in the devices file"):
        of_status(Status(device=name, online=True))


def test_what_is_no_status_of_its_topics_device_is_counted():
    ears = _Ears()
    say(ears, "pi")
    say(ears, "roof", topic=topics.status("pi"))
    say(ears, "x", payload=b"{")
    say(ears, "a.b")
    say(ears, "big", payload=b" " * (module.MESSAGE_MAX_BYTES + 1))
    say(ears, "gone", payload=b"")
    assert set(ears.heard) == {"pi"}
    assert ears.left_out == 4


@pytest.mark.parametrize(
    ("bound", "value"), [("DEVICES_MAX", 2), ("KEPT_MAX_BYTES", 2 * len(encode(Status(device="a", online=True))))]
)
def test_past_the_bounds_devices_are_counted_and_known_ones_still_heard(monkeypatch, bound, value):
    monkeypatch.setattr(module, bound, value)
    ears = _Ears()
    for name in "abcd":
        say(ears, name)
    assert (set(ears.heard), ears.left_out) == ({"a", "b"}, 2)
    say(ears, "a", encode(Status(device="a", online=False)))
    assert not ears.heard["a"].online
    assert ears.left_out == 2


@given(st.binary(max_size=200), st.text(max_size=80))
def test_nothing_that_comes_is_too_much(payload, name):
    ears = _Ears()
    say(ears, name, payload)
    assert len(ears.heard) + ears.left_out == bool(payload)


def test_a_store_adds_those_that_the_broker_does_not_tell_of():
    heard = Announcements(devices=(Announced(device="b", online=True, model="Pi"),), left_out=1, ended=True)
    found = join(heard, [Status(device=name, online=False) for name in ("b", "a", "all")])
    assert found.devices == (Announced(device="a", online=False), heard.devices[0])
    assert (found.left_out, found.ended) == (2, True)


def test_queries_mean_names_labels_and_models_and_each_must_mean_one():
    found = [
        Announced(device="shelf-1", online=True, labels={"site": "lab"}),
        Announced(device="shelf-2", online=True),
        Announced(device="roof", online=True, model="Raspberry Pi 5"),
    ]

    def names(*words):
        return [one.device for one in meant(found, map(parse_query, words))]

    assert names("shelf-*") == ["shelf-1", "shelf-2"]
    assert names("model~pi 5", "site=lab", "shelf-1") == ["roof", "shelf-1"]
    assert names("all") == ["shelf-1", "shelf-2", "roof"]
    with pytest.raises(CallerError, match=r"'attic-\*' means none of the devices found: roof, shelf-1, shelf-2"):
        names("all", "attic-*")


def test_those_of_the_devices_file_are_marked():
    one, other = Announced(device="pi", online=True), Announced(device="roof", online=True)
    made = marked([one, other], {"pi": MqttDevice(name="pi", broker="mqtt://u:secret@hub.lan")})
    assert [found.listed for found in made] == ["pi at mqtt://hub.lan:1883", ""]

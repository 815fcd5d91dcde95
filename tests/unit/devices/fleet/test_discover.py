from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices import topics
from ferryman.devices.fleet.discover import (
    ADDRESSES_MAX,
    NAME_MAX_CHARS,
    TEXT_MAX_CHARS,
    TEXTS_MAX,
    by_host,
    read_answer,
    settings_of,
)
from ferryman.runtime.contracts.errors import CallerError


def answer(**changes):
    whole = {
        "service": "ssh",
        "instance": "kitchen",
        "host": "kitchen.local.",
        "addresses": ["192.168.1.20"],
        "port": 22,
        "properties": [],
    }
    return read_answer(**whole | changes)


def test_a_host_is_one_entry_with_all_it_offers():
    (found,) = by_host(
        [
            answer(),
            answer(service="ferryman", properties=[(b"device", b"pi"), (b"version", b"0.2.0")], host="Kitchen.local."),
            answer(service="mqtt", port=1883, addresses=["fe80::1%eth0", "192.168.1.20"]),
        ]
    )
    assert found.host == "kitchen.local"
    assert found.services == {"ferryman": 22, "ssh": 22, "mqtt": 1883}
    assert found.addresses == ("192.168.1.20", "fe80::1")
    assert (found.device, found.version, found.suggested) == ("pi", "0.2.0", "pi")


@pytest.mark.parametrize(
    "changes", [{"port": 0}, {"port": 70000}, {"addresses": []}, {"addresses": ["x"]}, {"host": "."}, {"host": ""}]
)
def test_what_leads_nowhere_is_left_out(changes):
    assert answer(**changes) is None


def test_a_name_that_no_device_can_have_is_not_taken_over():
    (found,) = by_host([answer(service="ferryman", properties=[(b"device", b"../+/#\x1b[31m")])])
    assert found.device == ""
    assert found.suggested == "kitchen"


def test_what_could_steer_a_terminal_is_shown_as_a_question_mark():
    (found,) = by_host(
        [answer(service="ferryman", host="\x1b[2Jk\x07.local", properties=[(b"version", b"\x1b]0;x\x07")])]
    )
    assert found.host == "?[2jk?.local"
    assert found.version == "?]0;x?"


def test_long_answers_are_cut():
    found = answer(
        host="h" * 1000,
        instance="i" * 1000,
        addresses=[f"10.0.0.{n}" for n in range(200)],
        properties=[(f"k{n}".encode() * 100, b"v" * 10_000) for n in range(1000)],
    )
    assert len(found.host) == len(found.instance) == NAME_MAX_CHARS
    assert len(found.addresses) == ADDRESSES_MAX
    assert len(found.texts) <= TEXTS_MAX
    assert all(len(text) <= TEXT_MAX_CHARS for text in found.texts.values())


@given(
    st.text(max_size=100),
    st.text(max_size=100),
    st.lists(st.one_of(st.text(max_size=20), st.ip_addresses().map(str)), max_size=12),
    st.integers(-5, 70000),
    st.lists(st.tuples(st.one_of(st.none(), st.binary(max_size=300)), st.one_of(st.none(), st.binary(max_size=300)))),
)
def test_whatever_is_said_is_harmless(host, instance, addresses, port, properties):
    found = answer(
        host=host, instance=instance, addresses=addresses, port=port, properties=properties, service="ferryman"
    )
    if found is None:
        return
    (one,) = by_host([found])
    for text in (one.host, one.version, *one.addresses, found.instance, *found.texts, *found.texts.values()):
        assert text.isprintable()
    assert one.device == "" or topics.is_name(one.device)
    assert one.suggested == "" or topics.is_name(one.suggested)


def test_the_devices_file_would_say_how_it_is_reached():
    (ssh,) = by_host([answer(port=2222), answer(service="adb", port=37123)])
    assert settings_of(ssh, user="pi") == {"host": "kitchen.local", "user": "pi", "port": 2222}
    (adb,) = by_host([answer(service="adb", port=37123)])
    assert settings_of(adb, user="pi") == {"adb": "192.168.1.20:37123"}
    (broker,) = by_host([answer(service="mqtt", port=1883)])
    with pytest.raises(CallerError, match=r"kitchen\.local offers mqtt and neither SSH nor adb"):
        settings_of(broker, user="pi")

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.broker import BrokerConfig, parse_broker, without_password
from ferryman.runtime.contracts.errors import CallerError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://box", BrokerConfig(host="box", port=1883)),
        ("mqtt://[::1]:1884/", BrokerConfig(host="::1", port=1884)),
        (
            "mqtt://me:p%40ss%3A@box:1",
            BrokerConfig(host="box", port=1, username="me", password="p@ss:"),  # noqa: S106
        ),
        ("mqtt://box?version=3.1.1", BrokerConfig(host="box", port=1883, only_3_1_1=True)),
        ("mqtts://box", BrokerConfig(host="box", port=8883, tls=True)),
        (
            "mqtts://box?ca=/a%20b.pem&cert=c.pem&key=k.pem",
            BrokerConfig(host="box", port=8883, tls=True, tls_ca="/a b.pem", tls_cert="c.pem", tls_key="k.pem"),
        ),
    ],
)
def test_urls_are_read(url, expected):
    assert parse_broker(url) == expected


@pytest.mark.parametrize(
    "url",
    ["", "box", "http://box", "mqtt://", "mqtt://box:x", "mqtt://box:99999", "mqtt://box/topic", "mqtt://box?ca=x",
     "mqtt://box?version=4", "mqtts://box?password=x", "mqtt://[::1"],
)  # fmt: skip
def test_anything_else_is_refused_with_what_is_expected(url):
    with pytest.raises(CallerError, match=r"expected mqtt://"):
        parse_broker(url)


@given(st.text(max_size=60))
def test_no_text_crashes_the_reading(text):
    for url in (text, f"mqtt://{text}", f"mqtts://box?{text}"):
        with contextlib.suppress(CallerError):
            assert parse_broker(url).host


def test_the_password_is_not_shown():
    assert "secret" not in repr(parse_broker("mqtt://me:secret@box"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://hub", "mqtt://hub"),
        ("mqtts://me@hub:1?ca=a", "mqtts://me@hub:1?ca=a"),
        ("mqtt://me:p%40ss@hub", "mqtt://me:***@hub"),
        ("mqtts://me:p@ss@[::1]:1?ca=a&cert=b", "mqtts://me:***@[::1]:1?ca=a&cert=b"),
    ],
)
def test_a_password_is_hidden_and_nothing_else(url, shown):
    assert without_password(url) == shown

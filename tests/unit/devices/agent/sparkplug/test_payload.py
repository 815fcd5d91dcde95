from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.sparkplug.payload import (
    BOOLEAN,
    DOUBLE,
    INT64,
    STRING,
    Metric,
    commands,
    encode_payload,
)

GOLDEN = Path(__file__).parents[4] / "golden" / "sparkplug"
T = 1_795_492_336_000

pytest.importorskip("google.protobuf", reason="the extra `sparkplug` is not installed")


@pytest.mark.parametrize(
    ("name", "seq", "metrics"),
    [
        (
            "nbirth",
            0,
            [
                Metric("bdSeq", None, INT64, T, 7),
                Metric("Node Control/Rebirth", None, BOOLEAN, T, value=False),
                Metric("temperature_c", 8, DOUBLE, T, 61.5),
                Metric("throttled", 10, BOOLEAN, T, value=True),
                Metric("power_w", 11, DOUBLE, T, None),
                Metric("package_sha256", 16, STRING, T, "ab12"),
            ],
        ),
        (
            "ndata",
            255,
            [
                Metric(None, 8, DOUBLE, T - 5000, 60.25, historical=True),
                Metric(None, 10, BOOLEAN, T, value=False),
            ],
        ),
        ("ndeath", None, [Metric("bdSeq", None, INT64, T, 255)]),
    ],
)
def test_messages_are_byte_for_byte_those_of_the_reference_implementation(name, seq, metrics):
    assert encode_payload(T, metrics, seq) == (GOLDEN / f"{name}.bin").read_bytes()


def test_a_command_of_the_reference_implementation_is_read_and_what_is_not_known_passed_over():
    found = commands((GOLDEN / "ncmd.bin").read_bytes())
    assert found == {"Node Control/Rebirth": True, "Node Control/Reboot": False}


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data):
    try:
        commands(data)
    except ValueError:
        return


@given(st.integers(0, 40))
def test_a_command_that_is_cut_is_read_or_refused(length):
    try:
        commands((GOLDEN / "ncmd.bin").read_bytes()[:length])
    except ValueError:
        return

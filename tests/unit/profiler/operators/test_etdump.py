from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.operators.etdump import read_etdump
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.sessions import executorch
from tests.support.damage import CHANGES, changed, clear_error

MODELS = Path(__file__).parents[3] / "golden" / "pte"


def dump(runs=3):
    with executorch.open_session(MODELS / "linear.pte", threads=1, etdump=True) as session:
        for _ in range(runs):
            session.run([np.ones((1, 4), np.float32)])
        return session.etdump()


DUMP = dump()


def test_each_run_has_its_events():
    runs = read_etdump(DUMP)
    assert len(runs) == 3
    for events in runs:
        (whole,) = (event for event in events if event.name == "Method::execute")
        (call,) = (event for event in events if event.name == "DELEGATE_CALL")
        inside = [event for event in events if event.inside]
        assert [event.name.partition(" (")[0] for event in inside] == ["Fully Connected"]
        assert {event.instruction for event in inside} == {call.instruction} == {0}
        assert 0 < call.duration_ns <= whole.duration_ns < 60 * 10**9


@pytest.mark.slow  # its reader takes the whole of torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_agrees_with_executorchs_own_reader():
    serialize = pytest.importorskip("executorch.devtools.etdump.serialize")
    theirs = serialize.deserialize_from_etdump_flatcc(DUMP)
    expected = [
        [
            (one.name or one.delegate_debug_id_str, one.instruction_id, one.end_time - one.start_time)
            for event in run.events
            if (one := event.profile_event) is not None
        ]
        for run in theirs.run_data
        if run.name == "Execute"
    ]
    found = [[(event.name, event.instruction, event.duration_ns) for event in run] for run in read_etdump(DUMP)]
    assert found == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "damaged"),
        (DUMP[:-1], "as it says itself"),
        (DUMP[:8] + b"XX00" + DUMP[12:], "identifier"),
        (DUMP + b"\0", "as it says itself"),
    ],
)
def test_what_is_no_dump_says_so(data, said):
    with pytest.raises(RuntimeFault, match=said):
        read_etdump(data)


def test_another_version_is_told_apart():
    root = struct.pack("<I4s", 16, b"ED00") + struct.pack("<HHHHiI", 6, 8, 4, 0, 8, 9)
    with pytest.raises(RuntimeFault, match="expected version 0, found 9"):
        read_etdump(struct.pack("<I", len(root)) + root)


@given(CHANGES)
def test_altered_bytes_give_events_or_a_clear_error(changes):
    with clear_error("ETDump"):
        for events in read_etdump(changed(DUMP, changes)):
            assert all(event.duration_ns >= 0 for event in events)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_clear_error(data):
    with pytest.raises(RuntimeFault, match="ETDump"):
        read_etdump(data)

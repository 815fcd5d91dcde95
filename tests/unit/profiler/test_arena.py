from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ferryman.profiler.arena import arena_bytes
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.session import open_session
from tests.support.interpreters import ROOT, python_for
from tests.support.packages import ADD_ONE

PTE = Path(__file__).parents[2] / "golden" / "pte" / "dtypes.pte"
ASK = """
import sys, json, numpy as np
from ferryman.profiler.arena import arena_bytes
from ferryman.runtime.session import open_session
with open_session(sys.argv[1], "tflite", interpreter=sys.argv[2]) as session:
    session.run([np.zeros((1, 4), np.float32)])
    print(json.dumps(arena_bytes(session)))
    session.run([np.zeros((1, 4), np.float32)])
"""


def test_executorch_tells_its_planned_memory():
    with open_session(PTE, "executorch") as session:
        planned = arena_bytes(session)
        tensors = (*session.signature.inputs, *session.signature.outputs)
        whole = sum(int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize for one in tensors)
    assert isinstance(planned, int)
    assert 0 < planned < 16 * whole + 65536


def test_tflite_runtime_is_not_asked(tmp_path):
    """It dies of SIGSEGV where a delegate keeps a tensor inside."""
    path = tmp_path / "add.tflite"
    path.write_bytes(ADD_ONE)
    command = [
        str(python_for("tflite-runtime")),
        "-c",
        ASK.replace("json.dumps(", "repr("),
        str(path),
        "tflite-runtime",
    ]
    found = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True).stdout
    assert "inside a delegate" in found


@pytest.mark.parametrize("interpreter", ["ai-edge-litert"])
def test_tflite_has_room_for_what_goes_in_and_out_and_not_for_constants(tmp_path, interpreter):
    path = tmp_path / "add.tflite"
    path.write_bytes(ADD_ONE)
    python = python_for(interpreter)
    if python is None:
        with open_session(path, "tflite", interpreter=interpreter) as session:
            session.run([np.zeros((1, 4), np.float32)])
            found = arena_bytes(session)
            session.run([np.zeros((1, 4), np.float32)])
    else:
        command = [str(python), "-c", ASK, str(path), interpreter]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True).stdout)
    assert found == 32  # 4 floats in, 4 out


def test_what_does_not_tell_says_so():
    class Other:
        interpreter = "other"

    assert isinstance(arena_bytes(Other()), Unavailable)

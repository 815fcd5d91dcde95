"""The native session beside ExecuTorch's own Python tools, and beside the other interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreters import DEVICE_PYTHON

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

ALL_INTERPRETERS = """
import importlib.util, sys
from pathlib import Path
import numpy as np
from ferryman.runtime.session import open_session
assert importlib.util.find_spec("torch") is None
assert np.__version__ < "2"
golden = Path(sys.argv[1])
pte, tflite = golden / "pte" / "linear.pte", golden / "add_one.tflite"
with (
    open_session(pte, "executorch", threads=2) as a,
    open_session(tflite, "tflite", interpreter="tflite-runtime", threads=2) as b,
    open_session(tflite, "tflite", interpreter="ai-edge-litert", threads=2) as c,
):
    shape = [size if isinstance(size, int) else 1 for size in b.signature.inputs[0].shape]
    x = np.zeros(shape, b.signature.inputs[0].dtype)
    for _ in range(100):
        assert a.run([np.ones((1, 4), "float32")])[0].tolist() == [[3, 3, 3, 3]]
        assert (b.run([x])[0] == 1).all()
        assert (c.run([x])[0] == 1).all()
"""

INSPECT = """
import sys
from pathlib import Path
import numpy as np
from executorch.devtools import Inspector
from ferryman.runtime.sessions.executorch import open_session
with open_session(Path(sys.argv[1]), threads=1, etdump=True) as session:
    for _ in range(5):
        session.run([np.ones((1, 4), "float32")])
    Path(sys.argv[2]).write_bytes(session.etdump())
table = Inspector(etdump_path=sys.argv[2]).to_dataframe()
runs = table[table.event_name == "Method::execute"].iloc[0]
assert len(runs.raw) == 5, runs.raw
assert min(runs.raw) > 0
assert any("Fully Connected" in name for name in table.event_name), list(table.event_name)
"""

BESIDE = """
import sys
from pathlib import Path
import numpy as np
pte = Path(sys.argv[1])
def ours():
    from ferryman.runtime.sessions.executorch import open_session
    session = open_session(pte, threads=1)
    return lambda x: session.run([x])[0]
def theirs():
    import torch
    from executorch.runtime import Runtime
    program = Runtime.get().load_program(pte)
    method = program.load_method("forward")
    return lambda x: (program, method.execute([torch.from_numpy(x)])[0].numpy())[1]
first, second = (ours, theirs) if sys.argv[2] == "ours" else (theirs, ours)
first, second = first(), second()
for seed in range(10):
    x = np.random.default_rng(seed).standard_normal((1, 4), "float32")
    np.testing.assert_array_equal(first(x), second(x))
"""


def run(python, code, *arguments):
    command = [str(part) for part in (python, "-c", code, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_three_interpreters_share_a_process_without_torch():
    run(DEVICE_PYTHON, ALL_INTERPRETERS, GOLDEN)


@pytest.mark.slow
def test_executorchs_inspector_reads_the_profile(tmp_path):
    run(sys.executable, INSPECT, GOLDEN / "pte" / "linear.pte", tmp_path / "profile.etdump")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_it_shares_a_process_with_executorchs_python_module(first):
    run(sys.executable, BESIDE, GOLDEN / "pte" / "linear.pte", first)

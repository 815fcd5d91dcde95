"""What the wheel takes on a device: under 120 MB with one interpreter, no torch, all of it as wheels for Arm."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.arm_wheel import arm_wheel, why_not
from tests.support.installed_size import ACCELERATOR, BAR_MB, CHOICES, NEEDED, asked_on_the_device, install, table
from tests.support.interpreters import ROOT

UNUSED = ("google", "tqdm", "flatbuffers", "backports.strenum", "typing_extensions")
"""Of what ai-edge-litert asks for, the modules of what NEEDED leaves out."""


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_a_device_install_is_small_and_without_torch(tmp_path, choice):
    installed = install(choice, arm_wheel(), tmp_path)
    print(table(installed))
    names = {part.name for part in installed.parts}
    assert "ferryman" in names
    assert not {name for name in names if "torch" in name or name == "executorch"}
    if choice.must_fit:
        assert installed.counted_mb < BAR_MB
    # pip asked about this machine, not about the device: the device must ask for the same.
    assert names == (
        asked_on_the_device(installed) if not choice.only else {p.partition("==")[0] for p in NEEDED} | {"ferryman"}
    )


RUN = """
import importlib.abc, sys
from pathlib import Path

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(tuple(sys.argv[2].split())):
            raise ImportError(f"{name} is blocked in this test")

sys.meta_path.insert(0, Blocked())
import numpy as np
from ferryman.profiler.operators.litert import time_litert
from ferryman.profiler.operators.tflite_graph import read_tflite
from ferryman.runtime.sessions.compiled import CompiledSession
from ferryman.runtime.session import open_session
import ferryman.devices.agent.agent

model = Path(sys.argv[1])
for session in (open_session(model, "tflite", interpreter="ai-edge-litert"), CompiledSession(model, 1, None, "")):
    with session:
        inputs = [np.ones(spec.shape, spec.dtype) for spec in session.signature.inputs]
        print(len(session.run(inputs)))
print(len(time_litert(model, read_tflite(model.read_bytes(), None, {}), None, inputs, threads=1, runs=2).whole))
print(Path(sys.modules["ai_edge_litert"].__file__).parent)
"""


@pytest.mark.parametrize("without", ["", Path(ACCELERATOR).name])
def test_sessions_and_the_agent_need_no_more_of_ai_edge_litert(tmp_path, without):
    package = Path(importlib.util.find_spec("ai_edge_litert").origin).parent
    assert (package / without).exists()
    left_out = shutil.ignore_patterns(without, "__pycache__")
    shutil.copytree(package, tmp_path / "ai_edge_litert", copy_function=os.symlink, ignore=left_out)
    model = ROOT / "tests" / "golden" / "shared" / "static.tflite"
    command = [sys.executable, "-c", RUN, model, " ".join(UNUSED)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2", "2", str(tmp_path / "ai_edge_litert")]

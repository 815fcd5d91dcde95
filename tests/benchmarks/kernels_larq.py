"""Beside larq-compute-engine 0.16: the same convolution, one process of the device environment (numpy < 2), in turn.

Its interpreter is a TFLite of its own that knows its operators; importing its package would want TensorFlow, which the
interpreter does not need. x86 is not what it was tuned for, so it runs by its fastest kernel there, the indirect one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.support.interpreters import DEVICE_PYTHON, ROOT

LARQ = "larq-compute-engine==0.16.0"
GOAL = Goal("conv 3x3 256->256 at 14x14, avx512, times as fast as Larq's", ">=", 12.0)
_CHANNELS, _SIZE = 256, 14
_ROUNDS = 60


def measure() -> Iterator[Bar | Figure]:
    """Install it beside the repository, then time both in a process of its own."""
    from ferryman.runtime import kernels

    if not DEVICE_PYTHON.exists():
        raise CannotRun("there is no .venv-device; make .venv-device/.ready")
    if "avx512" not in kernels.isas():
        raise CannotRun("this processor has no avx512")
    progress("the same convolution by larq-compute-engine")
    folder = _installed()
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = _artifacts(Path(name))
        command = [DEVICE_PYTHON, "-m", "tests.benchmarks.kernels_larq", folder, ours, theirs]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout)
    ours_s, theirs_s = np.array(found["ours"]), np.array(found["larq"])
    yield GOAL.measured(theirs_s / ours_s)
    yield figure("  Larq", theirs_s * 1e6, "us")
    yield figure("  ferryman on tflite-runtime", ours_s * 1e6, "us")


def _installed() -> Path:
    folder = ROOT / ".cache" / LARQ
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
            command = [DEVICE_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run([*command, "--target", scratch, LARQ], capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotRun(f"{LARQ} cannot be installed: {done.stderr.strip()[-200:]}")
            folder.parent.mkdir(exist_ok=True)
            Path(scratch).rename(folder)
            Path(scratch).mkdir()
    return folder


def _artifacts(folder: Path) -> tuple[Path, Path]:
    import torch

    from ferryman.converter.api import BinaryConv2d
    from ferryman.converter.backends import BACKENDS
    from ferryman.converter.capture import capture
    from ferryman.converter.lower_binary import lower_binary
    from ferryman.converter.quiet import quiet
    from ferryman.converter.source import make_source

    torch.manual_seed(0)
    module = BinaryConv2d(_CHANNELS, _CHANNELS, 3, padding=1).eval()
    example = torch.randn(1, _CHANNELS, _SIZE, _SIZE)
    with quiet():
        captured, _ = lower_binary(capture(make_source(module, (example,))))
        ours = folder / "ours.tflite"
        ours.write_bytes(BACKENDS["tflite"].lower(captured).data)
    theirs = folder / "larq.tflite"
    scale = module.scale.detach().numpy()
    theirs.write_bytes(larq_model(module.weight.detach().numpy(), scale, _SIZE))
    return ours, theirs


def larq_model(weight: np.ndarray, scale: np.ndarray, size: int) -> bytes:
    """LceQuantize and LceBconv2d, 3x3 with zeros around: float [1, size, size, in] -> float [1, size, size, out]."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    out, channels = weight.shape[:2]
    # Their bit 1 is -1.
    bits = np.packbits(weight.transpose(0, 2, 3, 1) < 0, axis=-1, bitorder="little").view("<i4")
    constants = [bits, scale.astype("<f4"), np.zeros(out, "<f4"), np.zeros(0, "<i4")]
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()

    def tensor(name: str, shape: tuple[int, ...], dtype: int, data: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, 0
        if data is not None:
            held = schema.BufferT()
            held.data = np.frombuffer(data.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(held)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    floats, integers = schema.TensorType.FLOAT32, schema.TensorType.INT32
    graph.tensors = []
    x = tensor("x", (1, size, size, channels), floats)
    packed = tensor("packed", (1, size, size, channels // 32), integers)
    held = [
        tensor(f"c{index}", data.shape, integers if data.dtype.kind == "i" else floats, data)
        for index, data in enumerate(constants)
    ]
    y = tensor("y", (1, size, size, out), floats)
    options = {
        "channels_in": channels,
        "dilation_height_factor": 1,
        "dilation_width_factor": 1,
        "fused_activation_function": 0,
        "pad_values": 0,
        "padding": 0,
        "stride_height": 1,
        "stride_width": 1,
    }
    model.operatorCodes, graph.operators = [], []
    for name, inputs, output, custom in (
        ("LceQuantize", [x], packed, b""),
        ("LceBconv2d", [packed, *held], y, bytes(flexbuffers.Dumps(options))),
    ):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode, code.version = name, 1
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes), inputs, [output]
        operator.customOptions = list(custom)
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [x], [y]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _in_turn(folder: str, ours: str, theirs: str) -> None:
    """In the device environment: print the seconds of both, after a look at whether they agree."""
    from ferryman.runtime.session import open_session

    sys.path.append(folder)
    package = types.ModuleType("larq_compute_engine")  # its own __init__ wants TensorFlow
    package.__path__ = [str(Path(folder) / "larq_compute_engine")]
    sys.modules["larq_compute_engine"] = package
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    x = np.random.default_rng(0).standard_normal((1, _CHANNELS, _SIZE, _SIZE), dtype=np.float32)
    larq = Interpreter(Path(theirs).read_bytes(), use_indirect_bgemm=True)
    predict = larq.interpreter.predict
    last = [np.ascontiguousarray(x.transpose(0, 2, 3, 1))]
    with open_session(Path(ours), "tflite", interpreter="tflite-runtime") as session:
        found = session.run([x])[0]
        np.testing.assert_allclose(found, predict(last)[0].transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)
        # Both with their copies in and out: Larq's has no call without them.
        calls = (lambda: seconds_of(lambda: session.run([x])), lambda: seconds_of(lambda: predict(last)))
        interleave(10, *calls)
        seconds = interleave(_ROUNDS, *calls)
    print(json.dumps({"ours": seconds[0].tolist(), "larq": seconds[1].tolist()}))


PARTS = (Part((GOAL,), measure),)

if __name__ == "__main__":
    _in_turn(*sys.argv[1:])

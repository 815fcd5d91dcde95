"""The layers run on converted networks, on every interpreter, against what eager's layers hold."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import ferryman.converter.api
from ferryman.converter.quiet import quiet
from ferryman.profiler import layers as layers_module
from ferryman.profiler.layers import layer_statistics
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.layers import LayerStatistics
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from ferryman.runtime.package import open_package
from ferryman.runtime.session import installed
from tests.support.interpreters import DEVICE_PYTHON

INPUTS = 64


class Net(nn.Module):
    """A dead channel behind a ReLU, a ReLU6 that clamps, and a last layer that is told three things apart."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = nn.functional.relu6(self.second(x))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():
        made.first.bias[2] = -100  # dead
        made.second.weight *= 20
        made.last.weight[4] = made.last.bias[4] = 0
    return made


@pytest.fixture(scope="module")
def images():
    return torch.randn(INPUTS, 1, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def converted(net, images, tmp_path_factory):
    """Variant's name -> variant and artifact."""
    folder = tmp_path_factory.mktemp("converted")
    found = {}
    for form, options in (("fp32", {}), ("int8", {"calibration": [(x,) for x in images[:8]], "sqnr_min_db": 10.0})):
        with quiet():
            ferryman.converter.api.convert(net, (images[0],), output=folder / form, form=form, name="net", **options)
        with open_package(next((folder / form).glob("*.ferry"))) as package:
            for variant in package.manifest.variants:
                path = folder / variant.name
                path.write_bytes(b"".join(package.chunks(variant.payload)))
                found[variant.name] = (variant, path)
    return found


def run(converted, name, interpreter, images):
    variant, path = converted[name]
    if interpreter not in installed(variant.runtime):
        pytest.skip(f"{interpreter} is in another environment")
    return layer_statistics(path, variant, interpreter, [[x.numpy()] for x in images], threads=1)


@pytest.fixture(scope="module")
def eager(net, images):
    """Module -> its activations, and the input of the last layer, for all images."""
    with torch.no_grad():
        first = torch.relu(net.first(images[:, 0]))
        second = nn.functional.relu6(net.second(first))
        return {"first": first.numpy(), "second": second.numpy(), "last": net.last(second.mean((2, 3))).numpy()}


PLACES = [("executorch-fp32", "executorch"), ("tflite-fp32", "ai-edge-litert")]


@pytest.mark.parametrize(("name", "interpreter"), PLACES)
def test_layers_hold_what_eagers_hold(converted, images, eager, name, interpreter):
    told = run(converted, name, interpreter, images)
    assert decode(encode(told), LayerStatistics) == told
    assert (told.inputs, told.information_max_bits, told.outputs_db) == (INPUTS, 6, 200)
    assert told.left_out == ()
    rows = [row for row in told.rows if row.name.split()[1] in {"conv2d", "linear"}]  # with what is fused into them
    for (module, wanted), row in zip(eager.items(), rows, strict=True):
        assert row.least == pytest.approx(wanted.min(), abs=1e-4)
        assert row.most == pytest.approx(wanted.max(), rel=1e-4)
        assert row.mean == pytest.approx(wanted.mean(), rel=1e-4)
        assert row.std == pytest.approx(wanted.std(), rel=1e-4)
        assert row.zeros == pytest.approx(np.mean(wanted == 0), abs=1e-3)
        assert sorted(row.shape) == sorted((1, *wanted.shape[1:]))
        if module == "first":
            assert row.dead == 1 / 8
        if module == "second":
            assert row.saturated == pytest.approx(np.mean(wanted == 6), abs=1e-3)
            assert row.saturated > 0.05
        if module == "last":
            assert row.dead == 1 / 5


@pytest.mark.parametrize(
    ("name", "interpreter"), [("executorch-int8", "executorch"), ("tflite-int8", "ai-edge-litert")]
)
def test_ferrymans_own_int8_layers_are_told_as_numbers(converted, images, eager, name, interpreter):
    told = run(converted, name, interpreter, images)
    row = told.rows[0]
    assert row.dtype == "int8"
    assert "conv2d" in row.name
    assert row.dead == 1 / 8
    assert row.mean == pytest.approx(eager["first"].mean(), rel=0.02)
    assert row.most == pytest.approx(eager["first"].max(), rel=0.1)
    assert row.zeros == pytest.approx(np.mean(eager["first"] == 0), abs=0.02)
    assert 0 <= row.saturated < 0.01


def test_interpreters_agree_to_the_bit_where_the_kernels_are_ferrymans(converted, images):
    one, other = (
        run(converted, f"{name}-int8", i, images).rows[0]
        for name, i in (("executorch", "executorch"), ("tflite", "ai-edge-litert"))
    )
    assert msgspec.structs.replace(one, name="", module=None) == msgspec.structs.replace(other, name="", module=None)


def test_information_is_bounded_by_the_inputs_and_grows_with_them(converted, images):
    few = run(converted, "executorch-fp32", "executorch", images[:4])
    many = run(converted, "executorch-fp32", "executorch", images)
    assert few.information_max_bits == 2
    assert all(0 <= row.unit_bits <= row.information_bits <= 2 for row in few.rows)
    assert max(row.information_bits for row in many.rows) == 6
    repeated = run(converted, "executorch-fp32", "executorch", images[:1].repeat(4, 1, 1, 1, 1))
    assert repeated.information_max_bits == 0
    assert all(row.information_bits == 0 for row in repeated.rows)


def test_inputs_that_do_not_fit_are_the_callers_fault(converted):
    variant, path = converted["executorch-fp32"]
    with pytest.raises(CallerError, match="found shape"):
        layer_statistics(path, variant, "executorch", [[np.zeros((1, 2), np.float32)]], threads=1)
    with pytest.raises(CallerError, match="at least one"):
        layer_statistics(path, variant, "executorch", [], threads=1)


def test_a_copy_that_crashes_or_answers_otherwise_is_unavailable(converted, images, monkeypatch):
    def given(change):
        real = layers_module._EXPOSE["executorch"]

        def expose(*arguments):
            made = real(*arguments)
            return replace(made, front=change(made.front))

        monkeypatch.setitem(layers_module._EXPOSE, "executorch", expose)
        found = run(converted, "executorch-fp32", "executorch", images[:2])
        monkeypatch.setitem(layers_module._EXPOSE, "executorch", real)
        assert isinstance(found, Unavailable)
        return found.reason

    assert "does not run" in given(lambda front: b"\0" * len(front))
    assert "does not run" in given(lambda front: front + b"\0" * 64)
    monkeypatch.setattr(layers_module, "OUTPUTS_MIN_DB", 201.0)
    assert "answers otherwise" in given(lambda front: front)


DEVICE = """
import sys
from pathlib import Path
from ferryman.profiler.layers import layer_statistics
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.record import decode, encode
import numpy as np
variant = decode(Path(sys.argv[1]).read_bytes(), Variant)
inputs = [[one] for one in np.load(sys.argv[3])]
sys.stdout.buffer.write(encode(layer_statistics(Path(sys.argv[2]), variant, "tflite-runtime", inputs, threads=1)))
"""


@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-int8"])
def test_the_older_interpreter_tells_the_same(converted, images, tmp_path, name):
    variant, path = converted[name]
    (tmp_path / "variant").write_bytes(encode(variant))
    np.save(tmp_path / "x.npy", images.numpy())
    arguments = [tmp_path / "variant", path, tmp_path / "x.npy"]
    done = subprocess.run([DEVICE_PYTHON, "-c", DEVICE, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    old, new = decode(done.stdout, LayerStatistics), run(converted, name, "ai-edge-litert", images)
    assert [row.name for row in old.rows] == [row.name for row in new.rows]
    for one, other in zip(old.rows, new.rows, strict=True):
        assert (one.mean, one.std) == pytest.approx((other.mean, other.std), rel=1e-3, abs=1e-5)

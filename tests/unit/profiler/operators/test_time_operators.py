"""Real conversions of small nets, timed operator by operator on every interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ferryman.converter.api  # noqa: F401  # before the toolchains
from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.compress.binary_modules import BinaryConv2d, BinaryLinear
from ferryman.converter.forms import find_form
from ferryman.converter.quantize.calibration import read_calibration
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.profiler.operators import time_operators
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.operators import Operators
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.session import open_session
from tests.support.golden import SHARED
from tests.support.interpreters import INTERPRETERS
from tests.support.operators import time_apart, variant_of

RUNS = 30
RUNTIMES = {"executorch": "executorch", "ai-edge-litert": "tflite", "tflite-runtime": "tflite"}
FORMS = ("fp32", "binary", "4bit")
DEFAULT = {"executorch": ("fp32", "binary"), "ai-edge-litert": ("fp32", "binary"), "tflite-runtime": ("fp32", "4bit")}
"""Each interpreter without ferryman's operators and with them; the others are slow."""


def pairs(*forms):
    """Parameters: form and interpreter."""
    return [
        pytest.param(form, interpreter, marks=() if form in DEFAULT[interpreter] else pytest.mark.slow)
        for interpreter in INTERPRETERS
        for form in forms
    ]


class Plain(nn.Module):
    """A convolution and a linear layer that delegates take, and a running sum along rows that they leave."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.cumsum(self.deep(self.stem(x)), 1)
        return self.head(x.mean((2, 3)))


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.body = nn.Sequential(BinaryConv2d(32, 64, 3, 2, 1, pad_value=1), nn.BatchNorm2d(64))
        self.head = BinaryLinear(64 * 8 * 8, 10)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).flatten(1))


@dataclass
class Made:
    path: Path
    variant: object
    inputs: list


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(form, runtime) -> an artifact."""
    folder = tmp_path_factory.mktemp("operators")
    found = {}

    def make(form, runtime):
        if (form, runtime) not in found:
            torch.manual_seed(0)
            net, size = (Binary(), 16) if form == "binary" else (Plain(), 32)
            x = torch.randn(1, 3, size, size)
            with quiet():
                captured = capture(make_source(net.eval(), (x,)))
                program = captured
                if form != "fp32":
                    program, _ = find_form(form).rewrite(captured, read_calibration(captured, None))
                lowered = BACKENDS[runtime].lower(program)
            path = folder / f"{form}{BACKENDS[runtime].suffix}"
            path.write_bytes(lowered.data)
            with open_session(path, runtime) as session:
                signature = session.signature
            variant = variant_of(runtime, signature, origins=lowered.origins)
            found[form, runtime] = Made(path, variant, [x.numpy()])
        return found[form, runtime]

    return make


@pytest.fixture(scope="module")
def timed(made):
    """(form, interpreter) -> its operators."""
    found = {}

    def time(form, interpreter):
        if (form, interpreter) not in found:
            one = made(form, RUNTIMES[interpreter])
            found[form, interpreter] = time_apart(one.path, one.variant, interpreter, one.inputs, runs=RUNS)
        assert isinstance(found[form, interpreter], Operators), found[form, interpreter]
        return found[form, interpreter]

    return time


def table(operators):
    return [(row.kind, row.module, row.delegate) for row in operators.rows]


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_every_operator_has_its_time_its_module_and_its_numbers(timed, interpreter):
    operators = timed("fp32", interpreter)
    assert sum(row.share for row in operators.rows) == pytest.approx(1)
    assert all(row.samples.count == RUNS for row in operators.rows)
    rows = table(operators)
    for wanted in (("conv2d", "stem.0", "xnnpack"), ("conv2d", "deep", "xnnpack"), ("linear", "head", "xnnpack")):
        assert rows.count(wanted) == 1
    (left,) = (row for row in operators.rows if row.kind == "cumsum")
    assert (left.delegate, left.flags, left.macs) == (None, ("undelegated",), 0)
    copies = [row for row in operators.rows if row.kind == "transpose"]
    assert copies
    assert all("layout copy" in row.flags for row in copies)
    counts = {row.module: row.macs for row in operators.rows if row.macs}
    assert counts == {"stem.0": 32 * 32 * 16 * 27, "deep": 16 * 16 * 32 * 16 * 9, "head": 320}
    (deep,) = (row for row in operators.rows if row.module == "deep" and row.kind == "conv2d")
    assert deep.bytes_moved == pytest.approx(4 * (32 * 32 * 16 + 16 * 16 * 32 + 16 * 32 * 9 + 32), rel=0.15)


@pytest.mark.parametrize(("form", "interpreter"), pairs(*FORMS))
def test_operators_take_together_about_what_the_whole_takes(timed, form, interpreter):
    operators = timed(form, interpreter)
    each = np.array([row.samples.values_ns() for row in operators.rows]).sum(0)
    whole = operators.whole.values_ns()
    assert len(whole) == RUNS
    ratio = float(np.min(each) / np.min(whole))
    # Microseconds that are cut off, and what goes on between operators, are a good part of a net that takes this few.
    assert 0.2 < ratio < 2.5, (ratio, operators.source)


OWN = {
    "4bit": {
        "stem.0": ("quant_conv2d", 32 * 32 * 16 * 27),
        "deep": ("quant_conv2d", 16 * 16 * 32 * 16 * 9),
        "head": ("quant_linear", 320),
    },
    "binary": {
        "body.0": ("binary_conv2d", 8 * 8 * 64 * 32 * 9),
        "head": ("binary_linear", 64 * 8 * 8 * 10),
    },
}


@pytest.mark.parametrize(("form", "interpreter"), pairs(*OWN))
def test_our_own_operators_are_told_apart_and_counted(timed, form, interpreter):
    own = [row for row in timed(form, interpreter).rows if row.delegate == "ferryman"]
    assert {row.module: (row.kind, row.macs) for row in own} == OWN[form]
    assert not any("undelegated" in row.flags for row in own)


@pytest.mark.parametrize("entry", ["small", "large"])
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_package_that_does_not_say_where_operators_come_from_is_timed_all_the_same(interpreter, entry):
    path = SHARED / f"two{BACKENDS[RUNTIMES[interpreter]].suffix}"
    with open_session(path, RUNTIMES[interpreter], entry=entry) as session:
        variant = variant_of(RUNTIMES[interpreter], session.signature, entry=entry)
    operators = time_apart(path, variant, interpreter, [np.load(SHARED / "two.npz")["x"]], runs=3)
    assert isinstance(operators, Operators), operators
    assert [row.macs for row in operators.rows if row.kind == "linear"] == [2048] * (1 + (entry == "large")) + [256]
    assert {row.module for row in operators.rows} == {None}


def test_what_cannot_be_timed_says_why(made, tmp_path):
    one = made("fp32", "executorch")
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(one.path.read_bytes()[:1000])
    found = time_operators(damaged, one.variant, "executorch", one.inputs, threads=1, runs=1)
    assert isinstance(found, Unavailable)
    assert "could not be timed" in found.reason
    with pytest.raises(CallerError, match="runs must be"):
        time_operators(one.path, one.variant, "executorch", one.inputs, threads=1, runs=0)
    with pytest.raises(CallerError, match="does not run"):
        time_operators(one.path, one.variant, "tflite-runtime", one.inputs, threads=1, runs=1)


class Two(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide = nn.Linear(16, width)
        self.out = nn.Linear(width, 4)

    def forward(self, x, y):
        return self.out(torch.cumsum(self.wide(x + y[:, None]), 1))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["executorch", "tflite"])
def test_of_several_entries_the_one_that_was_asked_for_is_timed(tmp_path, runtime):
    inputs = (torch.randn(2, 16), torch.randn(2))
    with quiet():
        entries = {name: capture(make_source(Two(width).eval(), inputs)) for name, width in (("a", 32), ("b", 64))}
        lowered = BACKENDS[runtime].lower_entries(entries)
    path = tmp_path / f"two{BACKENDS[runtime].suffix}"
    path.write_bytes(lowered["b"].data)
    with open_session(path, runtime, entry="b") as session:
        signature = session.signature
    variant = variant_of(runtime, signature, origins=lowered["b"].origins, entry="b")
    for interpreter in (name for name, of in RUNTIMES.items() if of == runtime):
        operators = time_apart(path, variant, interpreter, [one.numpy() for one in inputs], runs=3)
        assert isinstance(operators, Operators), operators
        counts = {row.module: row.macs for row in operators.rows if row.macs}
        assert counts == {"wide": 2 * 16 * 64, "out": 2 * 64 * 4}

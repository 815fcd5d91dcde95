"""The quantized operators inside ExecuTorch, in a process of their own: exact, and never a crash."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from ferryman.converter import quant_operators  # noqa: F401  # registers them
from ferryman.converter.quiet import quiet
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.isolated import IsolatedSession
from tests.support.quantized_reference import Int8, QuantConv, conv_case, embedding_case, floats_of, linear_case

OPS = torch.ops.ferryman


class Calls(torch.nn.Module):
    """An operator on given tensors; those that are no inputs are constants."""

    def __init__(self, operator, *arguments) -> None:
        super().__init__()
        self.operator = operator
        self.arguments = arguments
        for at, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor):
                self.register_buffer(f"b{at}", argument)

    def forward(self, *inputs):
        rest = (
            getattr(self, f"b{at}") if isinstance(argument, torch.Tensor) else argument
            for at, argument in enumerate(self.arguments)
        )
        left = list(inputs)
        return self.operator(*(left.pop(0) if argument is INPUT else argument for argument in rest))


INPUT = object()


def tensor(array):
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


def export(module, inputs, dynamic=None):
    with quiet():  # of the toolchain's warnings, when it is imported too
        from executorch.exir import to_edge

        program = torch.export.export(module, tuple(map(tensor, inputs)), dynamic_shapes=dynamic)
        return bytes(to_edge(program).to_executorch().buffer)


def run(artifact, inputs, folder, threads=1):
    path = folder / "model.pte"
    path.write_bytes(artifact)
    with IsolatedSession(path, "executorch", interpreter="executorch", threads=threads) as session:
        return session.run([np.asarray(x, order="C") for x in inputs])[0]


def by_pixel(images: np.ndarray, *, last: bool) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) if last or images.dtype == np.int8 else images


def conv_arguments(case: QuantConv, *, last: bool = False):
    """All after add."""
    out = case.out or Int8(0.0, 0, 0, 0)
    return (
        *(case.x.shape[1], list(case.weight.shape[2:]), list(case.stride), list(case.padding), list(case.dilation)),
        *(case.groups, last, case.bits, case.x_scale, case.x_zero, out.scale, out.zero, out.low, out.high),
        *(case.add_scale, case.add_zero),
    )


CONVS = {
    "floats": conv_case(20, 24, size=7, batch=2),
    "dynamic": conv_case(20, 24, size=7, batch=2, x_scale=0.0),
    "int8 out": conv_case(7, 17, bits=4, int8_out=True),
    "int8 in": conv_case(16, 40, bits=2, int8=True, stride=2, size=9),
    "int8 in and out": conv_case(16, 16, int8=True, int8_out=True, adds=True, batch=2),
    "floats, adds": conv_case(5, 20, bits=4, adds=True),
    "groups": conv_case(8, 12, groups=4, bits=2, int8_out=True),
    "depthwise": conv_case(20, 20, groups=20, bits=4, kernel=5, size=8, int8=True, int8_out=True),
    "pointwise": conv_case(33, 50, kernel=1, adds=True, int8_out=True),
    "no number": conv_case(3, 16, size=5),
}
CONVS["no number"].x[0, 0, 1, 1:4] = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("what", CONVS)
def test_a_convolution_equals_the_reference_to_the_bit(what, last, tmp_path):
    case = CONVS[what]
    constants = map(tensor, (case.packed(), case.scale, case.bias))
    add = None if case.add is None else INPUT
    module = Calls(OPS.quant_conv2d, INPUT, *constants, add, *conv_arguments(case, last=last))
    inputs = [by_pixel(images, last=last) for images in (case.x, case.add) if images is not None]
    found = run(export(module, inputs), inputs, tmp_path, threads=2)
    np.testing.assert_array_equal(found, by_pixel(case.expected(), last=last))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("channels", "out", "bits", "group"), [(64, 20, 4, 32), (37, 16, 8, 37), (70, 5, 2, 32)])
def test_a_linear_layer_takes_any_rank(leading, zero, channels, out, bits, group, tmp_path):
    layer = linear_case(channels, out, bits, group, zero=zero)
    weight, scale, zeros = map(tensor, layer.constants())
    x = floats_of(np.random.default_rng(0), *leading, channels)
    module = Calls(OPS.quant_linear, INPUT, weight, scale, zeros, tensor(layer.bias), bits, group, False)
    np.testing.assert_array_equal(run(export(module, [x]), [x], tmp_path, 2), layer.expected(x))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("channels", "bits", "group"), [(64, 4, 32), (37, 8, 37), (70, 2, 32)])
def test_an_embedding_takes_either_number(dtype, zero, channels, bits, group, tmp_path):
    table = embedding_case(30, channels, bits, group, zero=zero)
    ids = np.random.default_rng(0).integers(0, 30, (2, 5)).astype(dtype)
    constants = map(tensor, (table.packed(), table.scale, table.zero))
    module = Calls(OPS.quant_embedding, INPUT, *constants, 30, channels, bits, group, False)
    artifact = export(module, [ids])
    np.testing.assert_array_equal(run(artifact, [ids], tmp_path), table.expected(ids))
    for wrong in (-1, 30, 2**31 - 1):
        with pytest.raises(RuntimeFault, match="ferryman::quant_embedding"):
            run(artifact, [np.where(ids == ids[1, 1], dtype(wrong), ids)], tmp_path)


def test_bytes_may_be_called_int8(tmp_path):
    layer, x = linear_case(64, 20), floats_of(np.random.default_rng(0), 3, 64)
    weight, scale, zero = layer.constants()
    weight, zero = tensor(weight.view(np.int8)), tensor(zero.view(np.int8))
    module = Calls(OPS.quant_linear, INPUT, weight, tensor(scale), zero, tensor(layer.bias), 4, 32, False)
    np.testing.assert_array_equal(run(export(module, [x]), [x], tmp_path), layer.expected(x))


class Residual(torch.nn.Module):
    """Convolutions that hand int8 to each other; what goes in is added to what comes out."""

    def __init__(self, *cases) -> None:
        super().__init__()
        self.cases = cases
        for at, case in enumerate(cases):
            for name, array in (("weight", case.packed()), ("scale", case.scale), ("bias", case.bias)):
                self.register_buffer(f"{name}{at}", tensor(array))

    def conv(self, at, x, add=None):
        constants = (getattr(self, f"{name}{at}") for name in ("weight", "scale", "bias"))
        return OPS.quant_conv2d(x, *constants, add, *conv_arguments(self.cases[at]))

    def forward(self, x):
        y = self.conv(0, x)
        return self.conv(2, self.conv(1, y), y)


def residual():
    first = conv_case(3, 24, size=9, batch=2, int8_out=True)
    between = first.expected()
    second = replace(conv_case(24, 24, bits=4, int8=True, int8_out=True, seed=1), x=between, x_scale=0.05, x_zero=-3)
    third = replace(conv_case(24, 24, bits=2, int8=True, seed=2), x=second.expected(), x_scale=0.05)
    return first, second, replace(third, add=between, add_scale=0.05, add_zero=-3)


def test_layers_hand_int8_to_each_other(tmp_path):
    cases = residual()
    found = run(export(Residual(*cases), [cases[0].x]), [cases[0].x], tmp_path)
    np.testing.assert_array_equal(found, cases[-1].expected())


def test_the_batch_may_change_between_runs(tmp_path):
    first, second, third = residual()
    batch = torch.export.Dim("batch", min=1, max=8)
    path = tmp_path / "model.pte"
    path.write_bytes(export(Residual(first, second, third), [first.x], ({0: batch},)))
    with IsolatedSession(path, "executorch", interpreter="executorch") as session:
        for count in (1, 5, 2):
            x = floats_of(np.random.default_rng(count), count, 3, 9, 9)
            between = replace(first, x=x).expected()
            inner = replace(second, x=between).expected()
            np.testing.assert_array_equal(session.run([x])[0], replace(third, x=inner, add=between).expected())


# Hostile artifacts: every tensor is an input, so that the memory plan says where it lies.

CASE = conv_case(adds=True, int8_out=True)
LAYER = linear_case(64, 20)
TABLE = embedding_case(30, 64)
WEIGHT, SCALE, ZERO = LAYER.constants()
X = floats_of(np.random.default_rng(0), 3, 64)
IDS = np.arange(6).reshape(2, 3)
OPERATORS = {
    "conv2d": (
        [by_pixel(CASE.x, last=False), CASE.packed(), CASE.scale, CASE.bias, by_pixel(CASE.add, last=True)],
        conv_arguments(CASE),
    ),
    "linear": ([X, WEIGHT, SCALE, ZERO, LAYER.bias], (4, 32, False)),
    "embedding": ([IDS, TABLE.packed(), TABLE.scale, TABLE.zero], (30, 64, 4, 32, False)),
}
CONV_NAMES = (
    *("channels", "kernel_size", "stride", "padding", "dilation", "groups", "channels_last", "bits"),
    *("x_scale", "x_zero", "out_scale", "out_zero", "out_low", "out_high", "add_scale", "add_zero"),
)


def exported(operator, inputs, numbers):
    arguments = [None if array is None else INPUT for array in inputs]
    given = [array for array in inputs if array is not None]
    return export(Calls(getattr(OPS, f"quant_{operator}"), *arguments, *numbers), given), given


@pytest.fixture(scope="module")
def artifacts():
    return {name: exported(name, inputs, numbers) for name, (inputs, numbers) in OPERATORS.items()}


def with_changed_program(artifact, change):
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    file = deserialize_pte_binary(artifact)
    change(file.program.execution_plan[0])
    return bytes(serialize_pte_binary(file))


@pytest.mark.parametrize("ending", [False, True], ids=["at its beginning", "at its end"])
@pytest.mark.parametrize(
    ("operator", "which"), [(name, at) for name, (inputs, _) in OPERATORS.items() for at in range(len(inputs))]
)
def test_an_output_that_shares_memory_with_an_input_is_refused(artifacts, operator, which, ending, tmp_path):
    artifact, inputs = artifacts[operator]
    found = run(artifact, inputs, tmp_path)

    def overlap(plan):
        out = plan.values[plan.outputs[0]].val.allocation_info
        moved = plan.values[plan.inputs[which]].val.allocation_info
        step = inputs[which].itemsize  # aligned all the same
        moved.memory_id = out.memory_id
        moved.memory_offset_low = out.memory_offset_low + (found.nbytes - 1) // step * step * ending
        plan.non_const_buffer_sizes[out.memory_id] += 1 << 20

    with pytest.raises(RuntimeFault, match="out shares memory with an input"):
        run(with_changed_program(artifact, overlap), inputs, tmp_path)


@pytest.mark.parametrize(
    ("operator", "which"), [("conv2d", 0), ("conv2d", 2), ("linear", 2), ("linear", 4), ("embedding", 0)]
)
def test_memory_that_is_not_aligned_is_refused(artifacts, operator, which, tmp_path):
    artifact, inputs = artifacts[operator]

    def shift(plan):
        plan.values[plan.inputs[which]].val.allocation_info.memory_offset_low += 1
        plan.non_const_buffer_sizes[1] += 1 << 20

    with pytest.raises(RuntimeFault, match="a tensor's memory is not aligned"):
        run(with_changed_program(artifact, shift), inputs, tmp_path)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_output_that_is_an_input_is_refused(artifacts, operator, tmp_path):
    """The same value, not only the same memory."""
    artifact, inputs = artifacts[operator]

    def alias(plan):
        call = plan.chains[0].instructions[0].instr_args
        call.args[len(call.args) - 2] = call.args[len(call.args) - 1] = plan.inputs[4 if operator == "conv2d" else 0]

    with pytest.raises(RuntimeFault, match=r"out shares memory|out cannot take|out has another dtype"):
        run(with_changed_program(artifact, alias), inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_arguments_of_other_kinds_are_refused(artifacts, operator, tmp_path):
    """Every argument in the place of every other."""
    artifact, inputs = artifacts[operator]
    from executorch.exir._serialize._program import deserialize_pte_binary

    call = deserialize_pte_binary(artifact).program.execution_plan[0].chains[0].instructions[0].instr_args
    given = call.args[:-1]  # the output is there twice
    for at in range(len(given)):
        for other in {given[0], given[-1], given[len(given) // 2], given[4]} - {given[at]}:

            def exchange(plan, at=at, other=other):
                plan.chains[0].instructions[0].instr_args.args[at] = other

            try:
                run(with_changed_program(artifact, exchange), inputs, tmp_path)
            except RuntimeFault as error:
                assert f"ferryman::quant_{operator}" in str(error)  # noqa: PT017  # some are of the same kind


def test_too_few_arguments_are_refused(artifacts, tmp_path):
    for artifact, inputs in artifacts.values():
        for count in (0, 1, 4, 6):

            def cut(plan, count=count):
                call = plan.chains[0].instructions[0].instr_args
                call.args = copy.copy(call.args[:count])

            with pytest.raises(RuntimeFault):
                run(with_changed_program(artifact, cut), inputs, tmp_path)


def conv_with(**changes):
    numbers = dict(zip(CONV_NAMES, OPERATORS["conv2d"][1], strict=True))
    return OPERATORS["conv2d"][0], tuple((numbers | changes).values())


def given(operator, at, array):
    inputs, numbers = OPERATORS[operator]
    return [*inputs[:at], array, *inputs[at + 1 :]], numbers


ANY = "ferryman::quant_"  # what the kernels say of numbers is theirs
REFUSED = {
    "conv2d": {
        "double x": (given("conv2d", 0, CASE.x.astype("f8")), "x must be float32 or int8"),
        "x of rank 5": (given("conv2d", 0, CASE.x.reshape(1, 32, 4, 2, 2)), "x must have four dimensions"),
        "channels": (given("conv2d", 0, CASE.x[:, :31]), "x must have its channels"),
        "short weight": (given("conv2d", 1, CASE.packed().reshape(-1)[:-1]), "weight has another number of bytes"),
        "int32 weight": (given("conv2d", 1, CASE.packed().view("i4")), "weight must be a tensor of bytes"),
        "half scale": (given("conv2d", 2, CASE.scale.astype("f2")), "scale must be a float32 tensor"),
        "short bias": (given("conv2d", 3, CASE.bias[:-1]), "bias must be one an output channel"),
        "no add": (given("conv2d", 4, None), "add and add_scale come together"),
        "float add": (given("conv2d", 4, OPERATORS["conv2d"][0][4].astype("f4")), "add must be an int8 tensor"),
        "flat add": (given("conv2d", 4, CASE.add.reshape(-1)), "add must have the output's shape"),
        "more add": (given("conv2d", 4, np.zeros((2, 4, 4, 16), "i1")), "add must have the output's shape"),
        "add without a scale": (conv_with(add_scale=0.0), "add and add_scale come together"),
        "infinite scale": (conv_with(x_scale=1e300), "x_scale must be a finite float"),
        "no number": (conv_with(add_scale=float("nan")), "add_scale must be a finite float"),
        "negative scale": (conv_with(x_scale=-1.0), ANY),
        "fewer bits": (conv_with(bits=4), "weight has another number of bytes"),
        "bits": (conv_with(bits=5), ANY),
        "huge bits": (conv_with(bits=2**40), "a number does not fit 32 bits"),
        "zero": (conv_with(x_zero=128), ANY),
        "low": (conv_with(out_low=-129), ANY),
        "high": (conv_with(out_high=-128, out_low=127), ANY),
        "padding": (conv_with(padding=[3, 3, 3, 3]), ANY),
    },
    "linear": {
        "int x": (given("linear", 0, X.astype("i4")), "x must be float32, or int8 in blocks"),
        "channels": (given("linear", 0, X[:, :32]), "weight has another number of bytes"),
        "float scale": (given("linear", 2, SCALE.astype("f4")), "scale must be a float16 tensor"),
        "short scale": (given("linear", 2, SCALE.reshape(-1)[:-1]), "scale must be one a group"),
        "half zero": (given("linear", 3, ZERO.astype("f2")), "zero must be a tensor of bytes"),
        "short zero": (given("linear", 3, ZERO.reshape(-1)[:-1]), "zero must be one a group"),
        "more bias": (given("linear", 4, np.zeros(33, "f4")), "weight has another number of bytes"),
        "bits": ((OPERATORS["linear"][0], (3, 32, False)), ANY),
        "group": ((OPERATORS["linear"][0], (4, 0, False)), ANY),
        "negative group": ((OPERATORS["linear"][0], (4, -32, False)), ANY),
    },
    "embedding": {
        "float ids": (given("embedding", 0, IDS.astype("f4")), "ids must be int32 or int64"),
        "short ids": (given("embedding", 0, IDS.astype("i2")), "ids must be int32 or int64"),
        "short weight": (given("embedding", 1, TABLE.packed()[:-1]), "weight has another number of bytes"),
        "scale": (given("embedding", 2, TABLE.scale.reshape(-1)[:-1]), "scale must be one a group"),
        "no scale": (given("embedding", 2, TABLE.scale[:0]), ANY),
        "zero": (given("embedding", 3, TABLE.zero[:-1]), "zero must be one a group"),
        "group": ((OPERATORS["embedding"][0], (30, 64, 4, 0, False)), ANY),
        "other group": ((OPERATORS["embedding"][0], (30, 64, 4, 33, False)), ANY),
        "bits": ((OPERATORS["embedding"][0], (30, 64, 1, 32, False)), ANY),
    },
}


@pytest.mark.parametrize(("operator", "what"), [(name, what) for name, cases in REFUSED.items() for what in cases])
def test_hostile_artifacts_are_refused(operator, what, tmp_path):
    (inputs, numbers), message = REFUSED[operator][what]
    artifact, inputs = exported(operator, inputs, numbers)
    with pytest.raises(RuntimeFault, match=message):
        run(artifact, inputs, tmp_path)

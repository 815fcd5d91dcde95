"""Our operators as torch computes them, against exact arithmetic: the kernels are held to the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from ferryman.converter import operators
from ferryman.converter.bits import pack_signs, pack_weights, unpack_signs
from tests.support.kernels import Case, packed
from tests.unit.runtime.native.test_kernels import cases

OPS = torch.ops.ferryman


def window(case: Case, *, channels_last: bool = False):
    channels = case.x.shape[1]
    kernel = list(case.weight.shape[2:])
    padding, stride, dilation = list(case.padding), list(case.stride), list(case.dilation)
    return (channels, kernel, stride, padding, dilation, case.groups, case.pad_value, channels_last)


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_a_convolution_equals_the_reference_whatever_its_input_and_output(case):
    weight, scale, bias, threshold = tensors(
        pack_weights(case.weight, case.groups), case.scale, case.bias, case.threshold
    )
    x, last, bits = tensors(case.x, case.x.transpose(0, 2, 3, 1), packed(case.x))
    expected = case.expected()
    for given_x, channels_last in ((x, False), (last, True), (bits, False)):
        numbers = window(case, channels_last=channels_last)
        found = OPS.binary_conv2d(given_x, weight, scale, bias, *numbers, False).numpy()
        np.testing.assert_array_equal(found.transpose(0, 3, 1, 2) if channels_last else found, expected)
        words = OPS.binary_conv2d_sign(given_x, weight, threshold, *numbers)
        signs = unpack_signs(words.numpy(), len(case.threshold)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(signs, case.dots() >= case.threshold[:, None, None])


@settings(max_examples=40, deadline=None)
@given(case=cases(), channels_last=st.booleans(), packed_input=st.booleans())
def test_shapes_are_known_without_computing(case, channels_last, packed_input):
    x = packed(case.x) if packed_input else case.x.transpose(0, 2, 3, 1) if channels_last else case.x
    given_x, weight, scale, threshold = tensors(x, pack_weights(case.weight, case.groups), case.scale, case.threshold)
    numbers = window(case, channels_last=channels_last)
    calls = (
        lambda *t: OPS.binary_conv2d(t[0], t[1], t[2], t[2], *numbers, False),
        lambda *t: OPS.binary_conv2d_sign(t[0], t[1], t[3], *numbers),
    )
    real = [call(given_x, weight, scale, threshold) for call in calls]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (given_x, weight, scale, threshold)]
        shapes = [call(*fakes) for call in calls]
    assert [(made.shape, made.dtype) for made in shapes] == [(made.shape, made.dtype) for made in real]


@pytest.mark.parametrize(("features", "out"), [(1, 1), (32, 16), (70, 40), (256, 5)])
@pytest.mark.parametrize("leading", [(3,), (2, 3)])
def test_a_linear_layer_equals_the_reference(features, out, leading):
    random = np.random.default_rng(0)
    x = random.standard_normal((*leading, features)).astype("f4")
    dense = random.standard_normal((out, features)).astype("f4")
    weight, scale, bias = tensors(
        pack_weights(dense[:, :, None, None], 1), *random.standard_normal((2, out)).astype("f4")
    )
    threshold = torch.arange(out, dtype=torch.int32) - out // 2
    dots = np.where(x >= 0, 1.0, -1.0) @ np.where(dense >= 0, 1.0, -1.0).T
    for given_x in tensors(x, pack_signs(x >= 0)):
        found = OPS.binary_linear(given_x, weight, scale, bias, features, False)
        np.testing.assert_array_equal(found, dots.astype("f4") * scale.numpy() + bias.numpy())
        words = OPS.binary_linear_sign(given_x, weight, threshold, features)
        np.testing.assert_array_equal(unpack_signs(words.numpy(), out), dots >= threshold.numpy())
    real = OPS.binary_linear(torch.from_numpy(x), weight, scale, bias, features, True)
    exact = x.astype("f8") @ np.where(dense >= 0, 1.0, -1.0).T * scale.numpy() + bias.numpy()
    np.testing.assert_allclose(real, exact, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_packing_can_be_undone(count, seed):
    positive = np.random.default_rng(seed).random((3, count)) < 0.5
    words = pack_signs(positive)
    np.testing.assert_array_equal(unpack_signs(words, count), positive)
    np.testing.assert_array_equal(operators.pack(torch.from_numpy(positive)), words)
    np.testing.assert_array_equal(operators.unpack(torch.from_numpy(words), count) > 0, positive)

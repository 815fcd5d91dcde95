from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import DTYPES, Tensor, pack, to_tensor, unpack

ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype).newbyteorder("<"), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)


@given(ARRAYS)
def test_arrays_come_back_as_they_were(array):
    found = unpack(pack(to_tensor(array)), Tensor).to_array()
    np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_travel_little_endian_whatever_the_array_has(order):
    array = np.arange(3).astype(np.dtype("float32").newbyteorder(order))
    assert to_tensor(array).data == np.arange(3, dtype="<f4").tobytes()


def test_views_are_made_dense():
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(to_tensor(array).to_array(), array)


@pytest.mark.parametrize("array", [np.array([print]), np.array(["x"]), np.array([1j]), np.array(["2020"], "M8[D]")])
def test_what_no_artifact_takes_is_the_callers_fault(array):
    with pytest.raises(CallerError, match="arrays have one of the dtypes bool, uint8"):
        to_tensor(array)

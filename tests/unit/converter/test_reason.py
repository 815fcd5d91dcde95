from __future__ import annotations

import pytest

from ferryman.converter.reason import reason

LITERT = """Lowering not found: aten.x.default

While executing %x : [num_users=1] = call_function[target=torch.ops.aten.x.default](args = (%y,), kwargs = {})
Original traceback:
File "net.py", line 40, in forward
"""
NESTED = """Traceback (most recent call last):
  File "a.py", line 1, in f
    g()

ValueError: no kernel for float16
"""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("shapes differ"), "shapes differ"),
        (RuntimeError("\n\n  first  \nsecond\n\nthird"), "first\nsecond"),
        (RuntimeError("mismatched dtypes:\n\nabs: complex64\n\nrest"), "mismatched dtypes:\nabs: complex64"),
        (RuntimeError(LITERT), "Lowering not found: aten.x.default (while executing %x)"),
        (RuntimeError(NESTED), "ValueError: no kernel for float16"),
        (RuntimeError("inside: " + NESTED), "ValueError: no kernel for float16"),
        (RuntimeError(""), "RuntimeError"),
        (AssertionError(), "AssertionError"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("a\nb\nc\nd\ne\nf"), "a\nb\nc\nd"),
    ],
)
def test_the_reason_is_what_a_reader_can_use(error, expected):
    assert reason(error) == expected


def test_a_reason_is_short():
    assert len(reason(RuntimeError("x" * 100_000))) <= 700

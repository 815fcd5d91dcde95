"""Damaged bytes, and what may come of reading them: something, or an error that says what they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import RuntimeFault

CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)
"""Where, as a share of the whole, and what is there instead."""


def changed(data: bytes, changes: Sequence[tuple[float, int]]) -> bytes:
    altered = bytearray(data)
    for at, value in changes:
        altered[int(at * len(altered))] = value
    return bytes(altered)


@contextmanager
def clear_error(word: str) -> Iterator[None]:
    """No error but one that holds the word."""
    try:
        yield
    except RuntimeFault as error:
        if word not in str(error):
            raise

"""Numbers of up to 32 bits as a symbol and bits: its length and its two bits behind the first one, and the rest.

Numbers below 4 are their own symbol.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ferryman.runtime.pieces.rans import Symbols

Values = npt.NDArray[np.uint32]

_TOP_BITS = 2


def split_numbers(numbers: Values) -> tuple[Symbols, Symbols]:
    """Symbols, and how many of each number's lowest bits go with it."""
    length = np.frexp(numbers.astype(np.float64))[1].astype(np.int64)  # exact: a float64 holds 32 bits
    counts = np.maximum(length - 1 - _TOP_BITS, 0).astype(np.uint32)
    symbols = np.where(length > _TOP_BITS, (counts + np.uint32(1) << _TOP_BITS) | (numbers >> counts & 3), numbers)
    return symbols.astype(np.uint8), counts.astype(np.uint8)


def count_rest(symbols: Symbols, bits: int = 32) -> Symbols:
    """How many bits go with each symbol of numbers of up to `bits` bits.

    Raises:
        ValueError: a symbol is of a longer number.
    """
    if len(symbols) and int(symbols.max()) >= (bits - 1) << _TOP_BITS:
        raise ValueError(f"a number is longer than {bits} bits")
    counts: Symbols = np.maximum(symbols >> _TOP_BITS, 1) - np.uint8(1)
    return counts


def join_numbers(symbols: Symbols, rest: Values) -> Values:
    """The numbers again."""
    wide = symbols.astype(np.uint32)
    steps = wide >> _TOP_BITS
    return np.where(steps > 0, (4 | (wide & 3)) << np.maximum(steps, 1) - 1 | rest, wide)

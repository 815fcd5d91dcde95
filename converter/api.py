"""What the front door takes from the converter, imported without the toolchains' chatter."""

from __future__ import annotations

from ferryman.converter.quiet import quiet

with quiet():
    from ferryman.converter.compress.api import Compressed, compress
    from ferryman.converter.compress.binary_modules import BinaryConv2d, BinaryLinear
    from ferryman.converter.pipeline import Conversion, convert

__all__ = ["BinaryConv2d", "BinaryLinear", "Compressed", "Conversion", "compress", "convert"]

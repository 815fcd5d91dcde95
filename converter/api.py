"""`convert`, imported without the toolchains' chatter."""

from __future__ import annotations

from ferryman.converter.quiet import quiet

with quiet():
    from ferryman.converter.pipeline import Conversion, convert

__all__ = ["Conversion", "convert"]

from __future__ import annotations

import re

import msgspec

from ferryman.profiler.operators_plot import roofline_svg
from ferryman.runtime.contracts.operators import Operator, Operators, Peak
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples


def operator(kind, module, share, macs, moved, *, flags=(), time_ns=100_000):
    return Operator(
        name=kind,
        kind=kind,
        module=module,
        delegate="xnnpack",
        samples=Samples.of([time_ns] * 3),
        share=share,
        bytes_moved=moved,
        macs=macs,
        flags=flags,
    )


OPERATORS = Operators(
    source="made up",
    rows=(
        operator("conv2d", "stem.0", 0.6, 5_000_000, 300_000),
        operator("linear", "$head", 0.3, 100_000, 400_000),
        operator("transpose", None, 0.06, 0, 100_000, flags=("layout copy",)),
        operator("linear", "quick", 0.04, 100, 100, time_ns=0),
    ),
    whole=Samples.of([400_000] * 3),
    peak=Peak(gmacs_per_s=60, gbytes_per_s=15, int8_gmacs_per_s=240.0, cache_gbytes_per_s=110),
)


def texts(svg):
    return " ".join(re.findall(r"<text[^>]*>([^<]*)", svg))


def test_operators_stand_under_the_roof_and_the_rest_is_told():
    said = texts(roofline_svg(OPERATORS))
    for word in ("conv2d", "linear", "stem.0 60 %", "$head 30 %", "fp32 60 GMAC/s", "int8 240", "memory 15 GB/s"):
        assert word in said
    assert "not shown: 10.0 %" in said
    assert "layout copies 6.0 %" in said
    assert "quick" not in said


def test_without_a_roof_there_are_dots_and_without_dots_nothing():
    bare = msgspec.structs.replace(OPERATORS, peak=Unavailable(reason="none"))
    assert "stem.0" in texts(roofline_svg(bare))
    assert "GB/s" not in texts(roofline_svg(bare))
    assert roofline_svg(msgspec.structs.replace(OPERATORS, rows=OPERATORS.rows[2:])) == ""


def test_it_is_the_same_each_time():
    assert roofline_svg(OPERATORS) == roofline_svg(OPERATORS)

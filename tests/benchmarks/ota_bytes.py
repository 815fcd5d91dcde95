"""Bytes of updates: ferryman's deltas beside the full package and other programs' deltas; coding of packed weights.

python -m tests.benchmarks.ota_bytes [--json]
python -m tests.benchmarks.ota_bytes table       prints the tables of docs/ota/deltas.md and draws docs/ota/bytes.svg
"""

from __future__ import annotations

import hashlib
import lzma
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import bsdiff4
import numpy as np
from backports import zstd
from matplotlib.figure import Figure as Drawing

from ferryman.devices.fleet.repository.chunks import cut
from ferryman.devices.fleet.repository.delta import EncodedPiece, encode_delta
from ferryman.profiler.report_plot import plotting
from ferryman.runtime.pieces.codecs import compress, make
from ferryman.runtime.pieces.elements import KINDS, encode_elements, span_of, split
from ferryman.runtime.pieces.index import Index, write_index
from ferryman.runtime.pieces.rans import count_symbols
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, main, progress
from tests.benchmarks.ota_updates import RUNTIMES, Update, updates
from tests.support.interpreters import ROOT
from tests.zoo import models

NAMES = (
    *("one-layer fine-tune", "biases only", "full fine-tune", "adapter, merged"),
    *("re-quantized int8", "re-quantized 4bit", "re-quantized 2bit", "re-binarized", "folded change"),
)
PACKED = {
    "re-quantized int8": "int8",
    "re-quantized 4bit": "nibble",
    "re-quantized 2bit": "nibble",
    "re-binarized": "nibble",
}
GENERIC = ("zstd --patch-from", "bsdiff4", "xdelta3", "chunks")
WORSE = {
    (name, runtime): Goal(f"{name} in {runtime}, bytes over the best generic tool's", "<=", 1.02)
    for name in NAMES
    for runtime in RUNTIMES
}
LAYER = {
    runtime: Goal(f"one-layer fine-tune in {runtime}, bytes over the layer's, compressed", "<=", 1.02)
    for runtime in RUNTIMES
}
BOUND = {
    name: Goal(f"{name}, packed weights, coded bytes and tables over the entropy bound", "<=", 1.05) for name in PACKED
}
QUICK = Goal("MobileNetV2, every weight changed, a delta is encoded in", "<=", 60, "s")
_CHANGED = 1e-3


class Row(NamedTuple):
    """One update: bytes by tool, and the time and speed of ours."""

    update: Update
    sizes: dict[str, int]
    encode_s: float
    decode_s: float


class PackedRow(NamedTuple):
    """The packed weights of one update: bytes, from nothing and from the old ones."""

    name: str
    plain: int
    zstd_alone: int
    coded_alone: int
    bound_alone: float
    zstd_based: int
    coded_based: int
    bound_based: float


def ours(old: bytes, new: bytes) -> tuple[int, list[EncodedPiece]]:
    """Bytes of a delta, its index and its pieces."""
    pieces = encode_delta(old, new)
    at, listed = 0, []
    for one in pieces:
        listed.append(one.piece(0, at))
        at += len(one.stored)
    # The name of a pack is a hash, as hard to compress as one.
    return at + len(write_index(Index(packs=(hashlib.sha256(new).hexdigest(),), pieces=tuple(listed)))[0]), pieces


def chunked(old: bytes, new: bytes) -> int:
    """What a device without a delta fetches: chunks it lacks, and their index."""
    have = {hashlib.sha256(chunk).digest() for chunk in cut(memoryview(old))}
    listed, at = [], 0
    for chunk in cut(memoryview(new)):
        data = bytes(chunk)
        sha256 = hashlib.sha256(data).digest()
        stored = b"had" if sha256 in have else min(compress(data), data, key=len)
        listed.append(EncodedPiece(0, len(data), "zstd", stored, sha256=sha256).piece(0, at))
        at += 0 if sha256 in have else len(stored)
        have.add(sha256)
    return at + len(write_index(Index(packs=(hashlib.sha256(new).hexdigest(),), pieces=tuple(listed)))[0])


def generic(old: bytes, new: bytes) -> dict[str, int]:
    """Bytes by tool; the programs with their best options."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(old)
        (folder / "new").write_bytes(new)
        by_zstd = ["zstd", "-q", "-f", "-19", "--long=27", "-o", "out"]
        by_xdelta = ["xdelta3", "-e", "-f", "-9", "-s", "old"]
        return {
            "full, zstd -19": _run(folder, [*by_zstd, "new"]),
            "zstd --patch-from": _run(folder, [*by_zstd, "--patch-from=old", "new"]),
            "bsdiff4": len(bsdiff4.diff(old, new)),
            "xdelta3": _run(folder, [*by_xdelta, "-S", "djw", "new", "out"]),
            "chunks": chunked(old, new),
        }


def _run(folder: Path, command: Sequence[str]) -> int:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        raise CannotRun(f"{command[0]} is not installed: apt-get install zstd xdelta3") from None
    return (folder / "out").stat().st_size


@cache
def rows() -> tuple[Row, ...]:
    """Every update by every tool."""
    found = []
    for update in updates():
        progress(f"{update.name} in {update.runtime}: {len(update.new)} bytes")
        start = time.perf_counter()
        size, pieces = ours(update.old, update.new)
        encoded = time.perf_counter()
        _decode(update.old, pieces)
        took = (encoded - start, time.perf_counter() - encoded)
        found.append(Row(update, {"ferryman": size, **generic(update.old, update.new)}, *took))
    return tuple(found)


def measure() -> Iterator[Bar | Figure]:
    """Bytes of every update."""
    for row in rows():
        name, runtime, size = row.update.name, row.update.runtime, row.sizes["ferryman"]
        yield WORSE[name, runtime].measured([size / min(row.sizes[tool] for tool in GENERIC)])
        if row.update.layer is not None:
            yield LAYER[runtime].measured([size / compressed(row.update.layer)])
        for tool, other in row.sizes.items():
            yield figure(f"  {name} in {runtime}: {tool}", [other], "bytes")
    yield figure("  a delta is encoded at", [len(row.update.new) / row.encode_s / 1e6 for row in rows()], "MB/s")
    yield figure("  and made at", [len(row.update.new) / row.decode_s / 1e6 for row in rows()], "MB/s")


def compressed(data: bytes) -> int:
    """The best of zstd -19 and xz."""
    return min(len(zstd.compress(data, 19)), len(lzma.compress(data, preset=9)))


def measure_mobilenet() -> Iterator[Bar | Figure]:
    """A payload of MobileNetV2's weights, all of them changed."""
    module, _ = models.mobilenet_v2_full()
    rng = np.random.default_rng(0)
    old = [weight.detach().numpy().ravel() for weight in module.parameters()]
    new = [weight + rng.normal(0, _CHANGED, weight.shape).astype(np.float32) for weight in old]
    before, after = (b"".join(weight.tobytes() for weight in weights) for weights in (old, new))
    progress(f"MobileNetV2: {len(after)} bytes")
    start = time.perf_counter()
    size, pieces = ours(before, after)
    encoded = time.perf_counter()
    _decode(before, pieces)
    yield QUICK.measured([encoded - start])
    yield figure("  and made in", [time.perf_counter() - encoded], "s")
    yield figure("  its bytes over the payload's", [size / len(after)])


def _decode(old: bytes, pieces: Sequence[EncodedPiece]) -> None:
    for one in pieces:
        make(one.piece(0, 0), one.stored, memoryview(old)[one.base_offset : one.base_offset + one.base_size])


@cache
def packed_rows() -> tuple[PackedRow, ...]:
    """The longest run of packed weights of an update, coded alone and against the old ones."""
    return tuple(
        _packed(row.update) for row in rows() if row.update.name in PACKED and row.update.runtime == RUNTIMES[0]
    )


def _packed(update: Update) -> PackedRow:
    piece = max(
        (one for one in encode_delta(update.old, update.new) if one.codec == "residual"), key=lambda one: one.size
    )
    new = update.new[piece.offset : piece.offset + piece.size]
    old = update.old[piece.base_offset : piece.base_offset + piece.base_size]
    kind = next(kind for kind in KINDS if kind.name == PACKED[update.name])
    sizes: list[float] = []
    for base in (None, old):
        by_zstd = compress(new, base)
        parts = split(kind, np.frombuffer(new, np.uint8), None if base is None else np.frombuffer(base, np.uint8))
        lowest, many = span_of(np.bincount(parts.contexts, minlength=256))
        counts = count_symbols(
            parts.symbols, np.clip(parts.contexts, lowest, lowest + many - 1) - np.uint8(lowest), many
        )
        odds = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        bits = -(counts * np.log2(odds, where=counts > 0, out=np.zeros(counts.shape))).sum()
        sizes += [len(by_zstd), len(encode_elements(kind, new, base)), float(bits / 8)]
    return PackedRow(
        update.name, len(new), int(sizes[0]), int(sizes[1]), sizes[2], int(sizes[3]), int(sizes[4]), sizes[5]
    )


def measure_packed() -> Iterator[Bar | Figure]:
    """Entropy coding of packed weights against its bound, and zstd."""
    for row in packed_rows():
        yield BOUND[row.name].measured([row.coded_alone / row.bound_alone, row.coded_based / row.bound_based])
        yield figure(f"  {row.name}: packed weights", [row.plain], "bytes")
        for what, by_zstd, coded, bound in (
            ("from nothing", row.zstd_alone, row.coded_alone, row.bound_alone),
            ("against the old ones", row.zstd_based, row.coded_based, row.bound_based),
        ):
            yield figure(f"  {row.name}, {what}: zstd -19", [by_zstd], "bytes")
            yield figure(f"  {row.name}, {what}: coded", [coded], "bytes")
            yield figure(f"  {row.name}, {what}: the bound", [bound], "bytes")


def tables() -> str:
    """As the docs have them."""
    tools = list(rows()[0].sizes)
    lines = [
        "| update | artifact | payload | " + " | ".join(tools) + " | over the best other |",
        "|---" * (len(tools) + 4) + "|",
    ]
    for row in rows():
        best = min(row.sizes[tool] for tool in GENERIC)
        cells = " | ".join(f"{row.sizes[tool]:,}" for tool in tools)
        ratio = row.sizes["ferryman"] / best
        lines.append(f"| {row.update.name} | {row.update.runtime} | {len(row.update.new):,} | {cells} | {ratio:.2f} |")
    lines += [
        "",
        "| packed weights | bytes | zstd -19 | coded | bound | patch (zstd) | coded on base | bound |",
        "|---" * 8 + "|",
    ]
    lines += [f"| {row.name} | " + " | ".join(f"{value:,.0f}" for value in row[1:]) + " |" for row in packed_rows()]
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Bytes over the full package's, by update and tool, of the first runtime."""
    shown = [row for row in rows() if row.update.runtime == RUNTIMES[0]]
    tools = [*GENERIC, "ferryman"]
    colours = ("#b8c4d0", "#93a3b3", "#6e8193", "#d9cfc0", "#c2410c")
    with plotting():
        drawing = Drawing(figsize=(8, 0.62 * len(shown) + 1.2), layout="constrained")
        axes = drawing.add_subplot()
        for number, (tool, colour) in enumerate(zip(tools, colours, strict=True)):
            values = [100 * row.sizes[tool] / row.sizes["full, zstd -19"] for row in shown]
            places = [-at - (number - 2) * 0.16 for at in range(len(shown))]
            axes.barh(places, values, 0.15, color=colour, label=tool)
        axes.set_yticks([-at for at in range(len(shown))], [row.update.name for row in shown])
        axes.set_xlim(0, 112)
        axes.set_xlabel("bytes of the update, % of the full artifact by zstd -19")
        drawing.legend(loc="outside upper center", ncols=len(tools), frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})


PARTS = (
    Part((*WORSE.values(), *LAYER.values()), measure),
    Part(tuple(BOUND.values()), measure_packed),
    Part((QUICK,), measure_mobilenet),
)


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        print(tables())
        draw(Path(ROOT) / "docs" / "ota" / "bytes.svg")
    else:
        main("ota_bytes", PARTS)

"""What a form costs and gains beside fp32, on each interpreter: bytes, latency side by side, and fidelity."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.converter.verify import Interpreter
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.tensor import Array

_ACTIVATIONS_DB = 3.0
"""What rounding activations as well may cost."""
_SCATTER = 1.3
"""Quartiles farther apart than so many times tell little."""
_WILD = 2.0
"""And than so many times, no number for how much faster."""


@dataclass(frozen=True)
class Compared:
    """A form's artifact beside the fp32 one, on one interpreter of this machine; one thread."""

    form: str
    runtime: str
    interpreter: str
    size_bytes: int
    fp32_bytes: int
    latency_us: float
    """Median."""
    fp32_us: float
    speedup: tuple[float, float, float]
    """fp32's time over the form's in each round: quartiles."""
    speedup_best: float
    """The same of the fastest rounds of each, which other work on the machine disturbs least."""
    sqnr_db: float
    """Of the worst output, to eager in float32."""
    top1_agreement: float | None
    asked_db: float = 0.0
    """What a budget in dB asked of rounding weights; 0: nothing."""
    bit_operations: float | None = None
    """Over fp32's: multiplications of layers times the bits of the weight and of the activation. None: not counted."""

    @property
    def complaints(self) -> list[str]:
        """What the form is for and does not give; empty where it gives it."""
        found = []
        if self.size_bytes >= self.fp32_bytes:
            found.append("is not smaller than fp32")
        if self.sqnr_db < self.asked_db - _ACTIVATIONS_DB:
            found.append(
                f"holds {self.sqnr_db:.1f} dB, where {self.asked_db:g} were asked for, of weights alone: calibrate it "
                "with inputs like those it will see, or ask for more"
            )
        if self.noisy:
            low, _, high = self.speedup
            found.append(
                f"was {low:.2f} to {high:.2f} times as fast as fp32, {self.speedup_best:.2f} at best: other work on "
                "this machine hides which is faster; measure again when it is quiet"
            )
        elif self.speedup[2] < 1 and self.speedup_best < 1:
            found.append(f"is slower than fp32 ({1 / self.speedup[1]:.2f}x the time)")
        return [f"{self.form} on {self.interpreter} {what}" for what in found]

    @property
    def caution(self) -> str:
        """What to know of a speedup that is told beside it, though it is no complaint; empty: nothing."""
        low, _, high = self.speedup
        if self.noisy or high / low <= _WILD:
            return ""
        return (
            f"{self.form} on {self.interpreter} was {low:.2f} to {high:.2f} times as fast as fp32: other work on this "
            "machine hides by how much; measure again when it is quiet"
        )

    @property
    def noisy(self) -> bool:
        """Whether times scatter so much that which is faster cannot be told."""
        low, middle, high = self.speedup
        apart = max(middle, self.speedup_best) / min(middle, self.speedup_best)
        return min(low, self.speedup_best) < 1 < max(high, self.speedup_best) and max(high / low, apart) > _SCATTER


def compare_forms(
    variant: Variant,
    pair: tuple[bytes, bytes],
    suffix: str,
    inputs: Sequence[Array],
    places: Sequence[Interpreter],
    *,
    bit_operations: float | None = None,
    asked_db: float = 0.0,
) -> list[Compared]:
    """Time a proven artifact beside the fp32 one on every interpreter it was proven on.

    Args:
        variant: what was proven.
        pair: the same model's artifact in float32, and the variant's.
        suffix: of both.
        inputs: one call.
        places: the interpreters.
        bit_operations: the variant's over fp32's.
        asked_db: what its recipe's budget asks for.

    Raises:
        RuntimeCrash: an interpreter fell while it was timed.
    """
    found = []
    proofs = {proof.interpreter: proof for proof in variant.verified}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}{suffix}" for name in ("fp32", "form")]
        for path, content in zip(paths, pair, strict=True):
            path.write_bytes(content)
        for place in places:
            base, ours = (
                np.array(one)
                for one in time_beside(
                    paths, place.name, [inputs, inputs], entries=[variant.entry] * 2, python=place.python
                )
            )
            low, middle, high = (float(one) for one in np.quantile(base / ours, (0.25, 0.5, 0.75)))
            proof = proofs[place.name]
            found.append(
                Compared(
                    form=variant.called,
                    runtime=variant.runtime,
                    interpreter=place.name,
                    size_bytes=len(pair[1]),
                    fp32_bytes=len(pair[0]),
                    latency_us=float(np.median(ours)) * 1e6,
                    fp32_us=float(np.median(base)) * 1e6,
                    speedup=(low, middle, high),
                    speedup_best=float(base.min() / ours.min()),
                    sqnr_db=proof.sqnr_db,
                    top1_agreement=proof.top1_agreement,
                    asked_db=asked_db,
                    bit_operations=bit_operations,
                )
            )
    return found


def table(found: Sequence[Compared]) -> str:
    """Rows for people."""
    heads = (
        *("form", "interpreter", "bytes", "of fp32", "us a call", "times as fast as fp32", "SQNR dB", "top-1 alike"),
        "BitOps of fp32",
    )
    rows = [heads]
    for one in found:
        low, middle, high = one.speedup
        rows.append((
            one.form, one.interpreter, f"{one.size_bytes:,}", f"{one.size_bytes / one.fp32_bytes:.3f}",
            f"{one.latency_us:,.0f}", f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{one.sqnr_db:.1f}",
            "" if one.top1_agreement is None else f"{one.top1_agreement:.1%}",
            "" if one.bit_operations is None else f"{one.bit_operations:.3f}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

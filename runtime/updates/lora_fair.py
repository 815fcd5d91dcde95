"""LoRA-FAIR: LoRA factors of many devices become one pair whose product is near the mean of theirs.

As in "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement".

The mean of factors is not the factors of the mean: mean(up) @ mean(down) is another matrix than mean(up @ down), which
is what the devices' training adds up to. The server corrects `up` towards it and keeps `down`, so devices start the
next round from factors they know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.updates.base import Floats

Pair = tuple[Floats, Floats]
"""down [r, inputs], up [outputs, r]."""


def aggregate_lora(pairs: Sequence[Pair], weights: Sequence[float], correction: float = 0.01) -> Pair:
    """Factors for all devices.

    The correction minimizes |mean(up @ down) - (mean(up) + c) @ mean(down)|^2 + `correction` |c|^2 |mean(down)|^2 / r;
    the paper asks for the same with a cosine in place of the first norm, which has no closed form.

    Args:
        pairs: of each device, of one rank.
        weights: of each device, such as how many examples it has.
        correction: how dear a correction is; large values give the plain mean of factors.

    Raises:
        CallerError: there are none, or their shapes differ.
    """
    if not pairs or len(pairs) != len(weights) or sum(weights) <= 0 or min(weights) < 0:
        raise CallerError(f"expected a weight from 0 for each of {len(pairs)} devices, not all of them 0")
    if len({(down.shape, up.shape) for down, up in pairs}) > 1 or pairs[0][0].shape[0] != pairs[0][1].shape[1]:
        raise CallerError("devices sent factors of different shapes; give all of them one rank")
    shares = np.array(weights, np.float64) / sum(weights)
    down, up = (_mean([pair[side] for pair in pairs], shares) for side in (0, 1))
    whole = _mean([one_up.astype(np.float64) @ one_down for one_down, one_up in pairs], shares)
    square = down @ down.T
    dear = max(correction * float(np.trace(square)) / len(square), float(np.finfo(np.float64).tiny))
    moved = np.linalg.solve(square + dear * np.eye(len(square)), ((whole - up @ down) @ down.T).T).T
    return down.astype(np.float32), (up + moved).astype(np.float32)


def _mean(arrays: Sequence[npt.NDArray[np.floating]], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(sum(share * one.astype(np.float64) for share, one in zip(shares, arrays, strict=True)))

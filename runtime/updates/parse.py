"""Codecs by name, as `ferryman publish --lossy` takes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.updates.base import Codec
from ferryman.runtime.updates.dgc import Dgc
from ferryman.runtime.updates.fedzip import FedZip
from ferryman.runtime.updates.rans import ALPHABET_MAX

_FORM = re.compile(r"(?P<name>[a-z]+)(-z(?P<kept>\d+(\.\d+)?))?(-k(?P<clusters>\d+))?", re.ASCII)
_LONGEST = 40
_MADE: dict[str, tuple[Callable[[float, int], Codec], float, int]] = {
    "fedzip": (FedZip, FedZip.kept, FedZip.clusters),
    "dgc": (lambda kept, _: Dgc(kept, momentum=0), Dgc.kept, 0),
}
"""Name -> what makes it of a share and of clusters, and what these are where nothing is said."""


def parse_codec(text: str) -> Codec:
    """`fedzip`, `fedzip-z1` (the largest 1 % of each tensor), `fedzip-z1-k7` (in 7 clusters), `dgc-z0.1`.

    Raises:
        CallerError: there is no such codec.
    """
    found = _FORM.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or found["name"] not in _MADE or (found["clusters"] and found["name"] != "fedzip"):
        raise CallerError(
            f"codec {text[:_LONGEST]!r}: expected one of {', '.join(_MADE)}, then -z and the percentage of each tensor "
            "that is sent, then for fedzip -k and its clusters: fedzip-z1-k15"
        )
    make, kept, clusters = _MADE[found["name"]]
    return make(float(found["kept"]) / 100 if found["kept"] else kept, int(found["clusters"] or clusters))


def finer_than(codec: Codec) -> tuple[str, ...]:
    """Names of codecs that lose less: twice the share, and for fedzip twice the clusters; none, where no more goes."""
    if not isinstance(codec, FedZip | Dgc):
        return ()
    found: list[Codec] = [replace(codec, kept=min(2 * codec.kept, 1.0))] if codec.kept < 1 else []
    if isinstance(codec, FedZip) and codec.clusters < ALPHABET_MAX:
        found.append(replace(codec, clusters=min(2 * codec.clusters + 1, ALPHABET_MAX)))
    return tuple(one.name for one in found)

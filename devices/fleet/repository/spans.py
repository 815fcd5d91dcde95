"""New weights in an artifact's place, and the pieces that make them of what a device has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ferryman.devices.fleet.repository.delta import EncodedPiece
from ferryman.devices.fleet.repository.weights import Weight, Weights
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES
from ferryman.runtime.pieces.sparse import Changed, encode_sparse
from ferryman.runtime.updates.base import Floats

_NAME_BYTES = 64
_RENAMED_BYTES = 16
"""Of a name: 64 bits tell versions of one constant apart, and fewer random digits travel."""
_ITEM = 4
_BETWEEN_MAX_BYTES = 4096
"""Equal bytes between two constants that a piece may span: fewer than a piece of their own costs."""


@dataclass(frozen=True)
class Hints:
    """Pieces that make one payload of another, for `encode_delta`."""

    old_sha256: str
    new_sha256: str
    pieces: tuple[EncodedPiece, ...]


def hints_for(hints: Mapping[str, Hints], path: str, old: bytes, new: bytes) -> Sequence[EncodedPiece]:
    """Those of a payload, where both its versions are the ones they were made for."""
    found = hints.get(path)
    if found is None or (found.old_sha256, found.new_sha256) != (sha256_hex(old), sha256_hex(new)):
        return ()
    return found.pieces


def put_weights(old: bytes, before: Weights, new: bytes, after: Weights, made: Mapping[Weight, bytes]) -> bytes:
    """`new` with other contents of its constants, under names that no other contents have.

    Args:
        old: what devices have, whose names are kept but for their ends.
        before: its constants.
        new: an artifact of the same structure.
        after: its constants.
        made: constant of `new` -> its contents.
    """
    data = bytearray(new)
    for weight, contents in made.items():
        data[weight.offset : weight.end] = contents
    named = {of: old[at : at + _NAME_BYTES] for at, of in before.names}
    renamed = {}
    for now, then in zip(after.uses, before.uses, strict=True):
        name = named.get(then.offset)
        if name is not None and now in made:
            changed = made[now] != old[then.offset : then.end]
            ending = sha256_hex(made[now])[:_RENAMED_BYTES].encode() if changed else name[-_RENAMED_BYTES:]
            renamed[now.offset] = name[:-_RENAMED_BYTES] + ending
    for at, of in after.names:
        if of in renamed:
            data[at : at + _NAME_BYTES] = renamed[of]
    return bytes(data)


def sparse_pieces(old: bytes, new: bytes, changes: Sequence[tuple[Weight, Weight, Floats]]) -> tuple[EncodedPiece, ...]:
    """Pieces of codec `sparse`, as few as their bounds allow.

    Args:
        old: the artifact a device has.
        new: the one it is to have.
        changes: constant of `old`, constant of `new`, and what is added to it (flat), in order of `new`.
    """
    return tuple(_piece(group) for group in _groups(old, new, changes))


_Part = tuple[int, int, Floats]
"""Offset in the old file and in the new one, and what is added there."""


def _groups(old: bytes, new: bytes, changes: Sequence[tuple[Weight, Weight, Floats]]) -> Iterator[list[_Part]]:
    group: list[_Part] = []
    for was, now, added in changes:
        for part in _parts(was, now, added):
            if group and not _joins(group, part, old, new):
                yield group
                group = []
            group.append(part)
    if group:
        yield group


def _parts(was: Weight, now: Weight, added: Floats) -> Iterator[_Part]:
    most = PIECE_MAX_BYTES // _ITEM
    for start in range(0, added.size, most):
        part = added[start : start + most]
        if part.any():
            yield was.offset + _ITEM * start, now.offset + _ITEM * start, part


def _joins(group: list[_Part], part: _Part, old: bytes, new: bytes) -> bool:
    """Whether one piece may span both: what lies between is the same, and small."""
    (first, _, _), (last_old, last_new, last) = group[0], group[-1]
    end_old, end_new = last_old + _ITEM * last.size, last_new + _ITEM * last.size
    between_old, between_new = old[end_old : part[0]], new[end_new : part[1]]
    return (
        part[0] >= end_old
        and (part[0] - first) % _ITEM == 0
        and between_old == between_new
        and len(between_new) <= _BETWEEN_MAX_BYTES
        and part[0] + _ITEM * part[2].size - first <= PIECE_MAX_BYTES
    )


def _piece(group: list[_Part]) -> EncodedPiece:
    (base, start, _), (last, _, added) = group[0], group[-1]
    size = last + _ITEM * added.size - base
    stored = encode_sparse([Changed(was - base, part) for was, _, part in group])
    return EncodedPiece(offset=start, size=size, codec="sparse", stored=stored, base_offset=base, base_size=size)


def floats_at(data: bytes, weight: Weight) -> Floats:
    """Contents of a constant, flat."""
    return np.frombuffer(data, "<f4", count=weight.size_bytes // _ITEM, offset=weight.offset).astype(np.float32)


def sha256_hex(data: bytes) -> str:
    """Of an artifact, or of a constant's contents."""
    return hashlib.sha256(data).hexdigest()

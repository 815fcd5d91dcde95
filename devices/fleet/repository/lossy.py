"""Updates that are less exact than their author meant, since that was asked for: fewer bytes, within a stated error.

A lossy codec's work is done here, once. What is published is the package a device will have, to the bit:

    new weight = float32(base weight + decoded update)

so devices only ever do exact, hash-checked work. An update is taken from what devices *have*, the package that the
last lossy update made, so what that left out is part of this one (the residual of DGC): errors do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.devices.fleet.repository.delta import EncodedPiece
from ferryman.devices.fleet.repository.proof import prove
from ferryman.devices.fleet.repository.spans import Hints, floats_at, hints_for, put_weights, sha256_hex, sparse_pieces
from ferryman.devices.fleet.repository.weights import Weight, Weights, find_weights
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.contracts.release import LossyUpdate
from ferryman.runtime.package import Package, open_package, write_package
from ferryman.runtime.updates.base import Codec, Floats
from ferryman.runtime.updates.parse import parse_codec

SQNR_LEAST_DB = 20.0
"""Of the answers on golden vectors, where nothing else is asked: noise of a tenth of the signal."""
_WEIGHTS_SHARE = 0.5
"""An artifact of which float32 weights are less is of another form, and travels exactly."""


@dataclass(frozen=True)
class LossyResult:
    """A package that is ready to be published."""

    package: Path
    sha256: str
    lossy: LossyUpdate
    hints: Mapping[str, Hints]
    """By payload path."""
    exact: tuple[str, ...]
    """Artifacts that hold no float32 weights to speak of, and are as their author meant."""

    def hinting(self, path: str, old: bytes, new: bytes) -> Sequence[EncodedPiece]:
        """For `publish(hinting=...)`: pieces, where these are the payloads they were made for."""
        return hints_for(self.hints, path, old, new)


@dataclass(frozen=True)
class LossyArtifact:
    """What a device will have of an artifact, and how it gets there."""

    data: bytes
    hints: Hints
    stored_bytes: int
    weight_bytes: int
    wrong: float
    """|sent - meant|^2, over all weights."""
    meant: float
    """|meant - base|^2."""


def lossy_package(
    base_package: Path, new_package: Path, codec: str, output: Path, *, sqnr_min_db: float = SQNR_LEAST_DB
) -> LossyResult:
    """Make the package that devices with `base_package` will have after a lossy update towards `new_package`.

    Args:
        base_package: what devices have: for the second lossy update, the output of the first.
        new_package: what they should have.
        codec: see `parse_codec`: `fedzip`, `fedzip-z1`, ...
        output: where the package is written to, once it holds the bar.
        sqnr_min_db: the bar its answers must hold against the model's own on every golden vector and interpreter.

    Raises:
        CallerError: no such codec, or the packages are not two versions of one model; the message says what to do.
        PackageError: a package is damaged.
        ParityError: the answers miss the bar; nothing is written.
        DeviceError: no interpreter here runs what was made.
    """
    how = parse_codec(codec)
    with open_package(base_package) as base, open_package(new_package) as new:
        made, exact = _artifacts(base, new, how)
        payloads = {one.path: new.read(one.path) for one in new.manifest.payloads}
        payloads |= {path: one.data for path, one in made.items()}
        variants, lowest_db = prove(new.manifest, payloads, set(made), sqnr_min_db, how)
        sha256 = write_package(
            output,
            name=new.manifest.name,
            signature=new.manifest.signature,
            variants=variants,
            artifacts={path: data for path, data in payloads.items() if path not in new.manifest.golden},
            golden=new.golden(),
            golden_sqnr_min_db=new.manifest.golden_sqnr_min_db,
            created_with=new.manifest.created_with,
        )
        lossy = LossyUpdate(
            codec=how.name,
            base_package_sha256=base.sha256,
            relative_error=math.sqrt(sum(one.wrong for one in made.values()) / sum(one.meant for one in made.values())),
            sqnr_min_db=lowest_db,
            ratio=sum(one.weight_bytes for one in made.values()) / sum(one.stored_bytes for one in made.values()),
        )
    return LossyResult(output, sha256, lossy, {path: one.hints for path, one in made.items()}, tuple(exact))


def _artifacts(base: Package, new: Package, codec: Codec) -> tuple[dict[str, LossyArtifact], list[str]]:
    had = {one.path for one in base.manifest.payloads}
    runtimes: dict[str, RuntimeName] = {one.payload: one.runtime for one in new.manifest.variants}
    made: dict[str, LossyArtifact] = {}
    exact: list[str] = []
    same: list[str] = []
    for path, runtime in sorted(runtimes.items()):
        data = new.read(path)
        after = find_weights(data, runtime)
        if sum(one.size_bytes for one in after.distinct()) < _WEIGHTS_SHARE * len(data):
            exact.append(path)
            continue
        if path not in had:
            raise CallerError(_another(f"{path} is not in {base.path}"))
        one = lossy_artifact(path, base.read(path), data, runtime, codec)
        if one is None:
            same.append(path)
        else:
            made[path] = one
    if not made:
        why = (
            f"the float32 weights of {', '.join(same)} did not change" if same else "no artifact holds float32 weights"
        )
        raise CallerError(f"{why}; publish {new.path} without --lossy")
    return made, exact


def _check_alike(path: str, before: Weights, after: Weights) -> None:
    """See that one artifact's constants stand for another's.

    Raises:
        CallerError: they do not.
    """
    shapes = [[one.shape for one in weights.uses] for weights in (before, after)]
    if shapes[0] != shapes[1]:
        raise CallerError(
            _another(
                f"{path} has {len(shapes[0])} float32 constants in one and {len(shapes[1])} in the other, or of other "
                "shapes"
            )
        )
    first = [[weights.uses.index(one) for one in weights.uses] for weights in (before, after)]
    if first[0] != first[1]:
        raise CallerError(_another(f"other layers of {path} share a constant"))


def _another(why: str) -> str:
    return (
        f"the packages are not two versions of one model: {why}. Convert both with the same ferryman and options, or "
        "publish without --lossy"
    )


def lossy_artifact(path: str, old: bytes, new: bytes, runtime: RuntimeName, codec: Codec) -> LossyArtifact | None:
    """Make what a device with `old` will have after a lossy update towards `new`.

    Args:
        path: of the artifact, for messages.
        old: what the device has.
        new: what it should have.
        runtime: of both.
        codec: for the update of all its weights.

    Returns:
        None where no weight changed.

    Raises:
        CallerError: they are not two versions of one model, or hold weights that are not finite.
        PackageError: one is damaged.
    """
    before, after = find_weights(old, runtime), find_weights(new, runtime)
    _check_alike(path, before, after)
    pairs = list(dict(zip(after.uses, before.uses, strict=True)).items())
    pairs.sort(key=lambda pair: pair[0].offset)
    was = {f"{at:06}": floats_at(old, one) for at, (_, one) in enumerate(pairs)}
    meant = {f"{at:06}": floats_at(new, one) for at, (one, _) in enumerate(pairs)}
    if not all(np.isfinite(one).all() for one in (*was.values(), *meant.values())):
        raise CallerError(
            "some weights are not finite; look for the training that diverged, or publish without --lossy"
        )
    update = {name: meant[name] - was[name] for name in was}
    if not any(one.any() for one in update.values()):
        return None
    decoded = codec.decode(codec.encode(update, {}), {name: one.shape for name, one in update.items()})
    sent = {name: was[name] + decoded[name] for name in was}
    contents: dict[Weight, bytes] = {}
    changes: list[tuple[Weight, Weight, Floats]] = []
    for name, (now, then) in zip(sorted(was), pairs, strict=True):
        contents[now] = np.where(decoded[name] == 0, was[name], sent[name]).astype("<f4").tobytes()
        changes.append((then, now, decoded[name]))
    data = put_weights(old, before, new, after, contents)
    pieces = sparse_pieces(old, data, changes)
    return LossyArtifact(
        data=data,
        hints=Hints(sha256_hex(old), sha256_hex(data), pieces),
        stored_bytes=sum(len(one.stored) for one in pieces),
        weight_bytes=sum(one.nbytes for one in was.values()),
        wrong=_square({name: sent[name] - meant[name] for name in sent}),
        meant=_square(update),
    )


def _square(tensors: Mapping[str, Floats]) -> float:
    return sum(float(np.square(one, dtype=np.float64).sum()) for one in tensors.values())

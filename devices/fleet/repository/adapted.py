"""Adapter-only updates: factors travel alone, and the device merges them into the weights it has."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from ferryman.devices.fleet.repository.delta import EncodedPiece
from ferryman.devices.fleet.repository.proof import prove
from ferryman.devices.fleet.repository.spans import Hints, floats_at, hints_for, put_weights, sha256_hex
from ferryman.devices.fleet.repository.weights import Weight, Weights, find_weights
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.manifest import GoldenVector, Manifest, RuntimeName
from ferryman.runtime.contracts.tensor import pack, to_tensors
from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import Package, open_package, write_package
from ferryman.runtime.pieces.adapter import encode_adapter
from ferryman.runtime.pieces.index import WHOLE_TENSOR_MAX_BYTES
from ferryman.runtime.updates.adapters import TensorAdapter, merge_weight, read_adapters, sha256_of

_LAYOUTS = {
    1: ((0,),),
    2: ((0, 1), (1, 0)),
    3: ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0)),
    4: ((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0), (2, 3, 1, 0)),
    5: ((0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (2, 3, 4, 1, 0)),
}
"""Orders of a tensor's axes in artifacts, by how many it has: as in the model, channels last, depthwise, transposed."""


@dataclass(frozen=True)
class AdapterResult:
    """A package that is ready to be published."""

    package: Path
    sha256: str
    hints: Mapping[str, Hints]
    """By payload path."""
    factor_bytes: int
    """Of all factors, once: what any one artifact's pieces carry."""

    def hinting(self, path: str, old: bytes, new: bytes) -> Sequence[EncodedPiece]:
        """For `publish(hinting=...)`: pieces, where these are the payloads they were made for."""
        return hints_for(self.hints, path, old, new)


def adapter_package(base_package: Path, adapters: Path, output: Path, *, answers: Path | None = None) -> AdapterResult:
    """Merge adapters into a package, as devices will.

    Each tensor is found by the hash of what the adapter was trained on, in the layout its artifact has it in; so an
    adapter is never merged into something else.

    Args:
        base_package: what devices have.
        adapters: a file that `ferryman.converter.adapters.save_adapters` wrote.
        output: where the package is written to, once it is proven.
        answers: a package of the merged model, whose golden vectors are the model's own answers. None: the base's
            golden inputs, with what the first variant answers here; all other variants and interpreters, and every
            device, are held to that, but nothing shows that the factors are what their author meant.

    Raises:
        CallerError: the adapters cannot be read, or a tensor of theirs is not in an artifact: quantized, or changed by
            folding; the message says which, and what to do.
        PackageError: a package is damaged.
        ParityError: a variant answers something else than the golden vectors by more than the bar.
        DeviceError: no interpreter here runs what was made.
    """
    tensors = read_adapters(adapters)
    if not tensors:
        raise CallerError(f"{adapters} holds no adapters")
    with open_package(base_package) as base:
        manifest = base.manifest
        runtimes: dict[str, RuntimeName] = {one.payload: one.runtime for one in manifest.variants}
        payloads = {one.path: base.read(one.path) for one in manifest.payloads}
        hints = {}
        for path, runtime in sorted(runtimes.items()):
            old = payloads[path]
            payloads[path], hints[path] = merge_artifact(path, old, runtime, tensors)
        golden = _golden(base, payloads, answers)
        payloads |= {path: pack(vector) for path, vector in zip(manifest.golden, golden, strict=True)}
        variants, _ = prove(manifest, payloads, set(runtimes))
        sha256 = write_package(
            output,
            name=manifest.name,
            signature=manifest.signature,
            variants=variants,
            artifacts={path: data for path, data in payloads.items() if path not in manifest.golden},
            golden=golden,
            golden_sqnr_min_db=manifest.golden_sqnr_min_db,
            created_with=manifest.created_with,
        )
    factors = sum(len(f.data) for one in tensors.values() for f in one.adapter.factors.values())
    return AdapterResult(output, sha256, hints, factors)


def merge_artifact(
    path: str, old: bytes, runtime: RuntimeName, tensors: Mapping[str, TensorAdapter]
) -> tuple[bytes, Hints]:
    """An artifact with its adapters, and the pieces that make it.

    Raises:
        CallerError: it does not hold a tensor as its adapter was trained on it, or what comes out is not finite.
        PackageError: it is damaged.
    """
    weights = find_weights(old, runtime)
    contents: dict[Weight, bytes] = {}
    pieces = []
    for name, one in tensors.items():
        found = list(_find(old, weights, one))
        if not found:
            raise CallerError(
                f"{path} does not hold {name} as the adapter was trained on it: the artifact is quantized, or a batch "
                "norm was folded into it, or it is of another model. Merge the adapter in the model, convert that, "
                "and publish the package: devices take a delta"
            )
        for weight, axes in found:
            if weight in contents:
                raise CallerError(f"{path}: {name} is also another adapter's tensor; merge both into one adapter")
            if weight.size_bytes > WHOLE_TENSOR_MAX_BYTES:
                raise CallerError(f"{name} has {weight.size_bytes} bytes, more than a device merges at once; see above")
            there = floats_at(old, weight).reshape([one.adapter.shape[axis] for axis in axes])
            merged = merge_weight(there.transpose(np.argsort(axes)), one.adapter)
            if not np.isfinite(merged).all():
                raise CallerError(f"{name} with its adapter is not finite; look for the training that diverged")
            contents[weight] = np.ascontiguousarray(merged.transpose(axes), "<f4").tobytes()
            at, size, stored = weight.offset, weight.size_bytes, encode_adapter(one.adapter, axes)
            if len(stored) < size:  # a bias is smaller than its factors, and takes a plain delta
                pieces.append(EncodedPiece(at, size, "adapter", stored, base_offset=at, base_size=size))
    data = put_weights(old, weights, old, weights, contents)
    return data, Hints(sha256_hex(old), sha256_hex(data), tuple(sorted(pieces, key=lambda piece: piece.offset)))


def _find(old: bytes, weights: Weights, wanted: TensorAdapter) -> Iterator[tuple[Weight, tuple[int, ...]]]:
    shape = wanted.adapter.shape
    for weight in weights.distinct():
        if weight.size_bytes != 4 * math.prod(shape):
            continue
        held = floats_at(old, weight)
        for axes in _LAYOUTS[len(shape)]:
            there = held.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
            if sha256_of(there) == wanted.base_sha256:
                yield weight, axes
                break


def _golden(base: Package, payloads: Mapping[str, bytes], answers: Path | None) -> list[GoldenVector]:
    manifest = base.manifest
    if any(one.golden for one in manifest.variants):
        raise CallerError(f"{base.path} holds several models with golden vectors of their own; convert them merged")
    if answers is None:
        return _answered(manifest, payloads, base.golden())
    with open_package(answers) as merged:
        if merged.manifest.signature != manifest.signature or len(merged.manifest.golden) != len(manifest.golden):
            raise CallerError(f"{answers} is of another model than {base.path}; convert the merged one the same way")
        return merged.golden()


def _answered(manifest: Manifest, payloads: Mapping[str, bytes], asked: Sequence[GoldenVector]) -> list[GoldenVector]:
    """What the first variant that runs here answers."""
    usable = [(one, name) for one in manifest.variants for name in usable_interpreters(one)]
    if not usable:
        raise DeviceError("nothing here runs any variant, and what was not run is not published")
    variant, interpreter = usable[0]
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / Path(variant.payload).name
        artifact.write_bytes(payloads[variant.payload])
        with IsolatedSession(artifact, variant.runtime, interpreter=interpreter, entry=variant.entry) as session:
            outputs = [session.run([tensor.to_array() for tensor in vector.inputs]) for vector in asked]
    specs = manifest.signature.outputs
    return [
        replace(vector, outputs=to_tensors([a.astype(s.dtype) for a, s in zip(answer, specs, strict=True)]))
        for vector, answer in zip(asked, outputs, strict=True)
    ]

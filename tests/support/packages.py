"""Tiny real packages: y = x + added, as a TFLite artifact of some hundred bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.tensor import Signature, TensorSpec, pack, to_tensors
from ferryman.runtime.package import open_package, write_package

# Written by hand with ai_edge_litert.schema_py_generated: one ADD of input args_0 and a constant float32[1, 4].
ADD_ONE = (Path(__file__).parents[1] / "golden" / "add_one.tflite").read_bytes()
_ONES = np.ones(4, np.float32).tobytes()

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 4)),),
)


def add_model(added: float) -> bytes:
    """The artifact that adds `added`."""
    return ADD_ONE.replace(_ONES, np.full(4, added, np.float32).tobytes())


def write_tiny_package(
    path: Path,
    *,
    added: float = 1.0,
    promised: float | None = None,
    interpreters: dict[str, str] | None = None,
    isa: tuple[str, ...] = (),
    operators: int = 0,
    padding: bytes = b"",
    name: str | None = None,
    signature: Signature = SIGNATURE,
) -> Path:
    """Write a package whose golden vector promises x + `promised` (the truth where it is None)."""
    model = add_model(added) + padding
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    answer = x + np.float32(added if promised is None else promised)
    write_package(
        path,
        name=name or f"add-{added:g}",
        signature=signature,
        variants=[
            Variant(
                name="fp32-tflite",
                form="fp32",
                runtime="tflite",
                payload="artifacts/model.tflite",
                signature=SIGNATURE,
                requires=Requirements(
                    interpreters=interpreters or {"ai-edge-litert": "2.0", "tflite-runtime": "2.14"},
                    isa=isa,
                    operators=operators,
                    memory_estimate_bytes=1 << 20,
                ),
                lowering=Lowering(delegated={}, fallback={"ADD": 1}, delegates=0),
                verified=(),
            )
        ],
        artifacts={"artifacts/model.tflite": model},
        golden=[GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([answer]))],
        golden_sqnr_min_db=60.0,
        created_with={"by-hand": "1"},
    )
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


SHARES = {"large": 1.0, "small": 0.25}
"""Variants of `write_varied_package`."""


def write_varied_package(path: Path, *, added: float = 1.0, paddings: dict[str, int] | None = None) -> Path:
    """Two nested networks, each an artifact of its own: `large` adds `added`, `small` a quarter of it.

    Args:
        path: where to.
        added: what the large one adds.
        paddings: zeros behind the artifacts.
    """
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    padding = {"large": 4000, "small": 0} | (paddings or {})
    artifacts = {f"artifacts/{n}.tflite": add_model(added * s) + bytes(padding[n]) for n, s in SHARES.items()}
    own = pack(GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([x + np.float32(added * SHARES["small"])])))
    variants = [
        Variant(
            name=name,
            form="fp32",
            runtime="tflite",
            payload=f"artifacts/{name}.tflite",
            signature=SIGNATURE,
            requires=Requirements(
                interpreters={"ai-edge-litert": "2.0", "tflite-runtime": "2.14"}, memory_estimate_bytes=1 << 20
            ),
            lowering=Lowering(delegated={}, fallback={"ADD": 1}, delegates=0),
            verified=(),
            golden=("own/small.msgpack",) if name == "small" else (),
            share=share,
        )
        for name, share in SHARES.items()
    ]
    write_package(
        path,
        name=f"varied-{added:g}",
        signature=SIGNATURE,
        variants=variants,
        artifacts={**artifacts, "own/small.msgpack": own},
        golden=[GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([x + np.float32(added)]))],
        golden_sqnr_min_db=60.0,
        created_with={"by-hand": "1"},
    )
    return path


def stage(package: Path, directory: Path, variants: tuple[str, ...] | None = None) -> tuple[bytes, str]:
    """What a downloader leaves of a package: its payloads as files; returns manifest.json and the package's SHA-256."""
    with open_package(package) as opened:
        for payload in opened.manifest.only(variants).payloads:
            target = directory / payload.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(opened.read(payload.path))
        return encode(opened.manifest), opened.sha256

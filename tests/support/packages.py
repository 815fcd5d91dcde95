"""Tiny real packages: y = x + added, as a TFLite artifact of some hundred bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.tensor import Signature, TensorSpec, to_tensors
from ferryman.runtime.package import write_package

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
) -> Path:
    """Write a package whose golden vector promises x + `promised` (the truth where it is None)."""
    model = add_model(added) + padding
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    answer = x + np.float32(added if promised is None else promised)
    write_package(
        path,
        name=f"add-{added:g}",
        signature=SIGNATURE,
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

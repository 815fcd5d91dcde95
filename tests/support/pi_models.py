"""Small networks in every form that has kernels of its own, as packages, and what they answer on any machine.

`python -c` of this file's text runs on a device: it imports nothing but ferryman's device side at its top.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.package import open_package, read_golden
from ferryman.runtime.session import open_session

PLACES = ("executorch", "ai-edge-litert")
"""Interpreters of the emulated Pi."""


def write_packages(folder: Path) -> dict[str, Path]:
    """Convert and prove them here: name -> package."""
    import torch
    from torch import nn

    from ferryman import BinaryLinear, compress, convert
    from tests.unit.converter.fold.nets import Block

    torch.manual_seed(0)
    torch.set_num_threads(1)
    image, row = torch.randn(1, 3, 12, 12), torch.randn(1, 64)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    binary = nn.Sequential(
        nn.Linear(64, 64), BinaryLinear(64, 64), nn.Hardtanh(), BinaryLinear(64, 64), nn.Linear(64, 10)
    )
    blocks = nn.Sequential(nn.Sequential(*(Block(64) for _ in range(4))), nn.Linear(64, 10))
    folded = compress(blocks.eval(), "folded-2", example=(row,)).model
    made = {
        "weights": (network, image, ("fp32", "int8", "4bit")),
        "binary": (binary, row, ("binary",)),
        "folded": (folded, row, ("fp32",)),
    }
    packages = {}
    for name, (model, example, forms) in made.items():
        seen = [(torch.randn_like(example),) for _ in range(16)]
        places = {"output": folder, "name": name, "interpreters": PLACES}
        packages[name] = convert(model.eval(), (example,), form=forms, calibration=seen, **places).path
    return packages


def answers(package: Path) -> dict[str, np.ndarray]:
    """`variant interpreter vector output` -> what this machine computes of the package's golden vectors."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, open_package(package) as opened:
        manifest = opened.manifest
        for variant in manifest.variants:
            artifact = Path(folder, variant.name)
            artifact.write_bytes(opened.read(variant.payload))
            vectors = [read_golden(opened.read(path), path) for path in variant.golden or manifest.golden]
            for interpreter in usable_interpreters(variant):
                with open_session(artifact, variant.runtime, interpreter=interpreter, entry=variant.entry) as session:
                    for number, vector in enumerate(vectors):
                        outputs = session.run([tensor.to_array() for tensor in vector.inputs])
                        found |= {f"{variant.name} {interpreter} {number} {i}": out for i, out in enumerate(outputs)}
    return found


if __name__ == "__main__":
    np.savez(sys.argv[2], **answers(Path(sys.argv[1])))

"""ResNet-20 for four images, in both formats, that the profiler is tried on."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ferryman.runtime.package import open_package, read_golden

_FOLDER = tempfile.TemporaryDirectory(prefix="ferryman-bench-")
INTERPRETERS = ("executorch", "ai-edge-litert")


class Model(NamedTuple):
    """A package, what is in it, and one call."""

    package: Path
    tflite: Path
    pte: Path
    image: np.ndarray


@functools.cache
def resnet20() -> Model:
    """Convert it, once for all parts."""
    from ferryman.converter.api import convert
    from tests.zoo.models import resnet20 as make

    module, inputs = make()
    folder = Path(_FOLDER.name)
    made = convert(
        module, inputs, to=("executorch", "tflite"), output=folder, name="resnet20", interpreters=INTERPRETERS
    )
    with open_package(made.path) as package:
        paths = []
        for variant in package.manifest.variants:
            paths.append(folder / Path(variant.payload).name)
            paths[-1].write_bytes(b"".join(package.chunks(variant.payload)))
        golden = b"".join(package.chunks(package.manifest.golden[0]))
    pte, tflite = sorted(paths)
    return Model(made.path, tflite, pte, read_golden(golden, "golden").inputs[0].to_array().copy())

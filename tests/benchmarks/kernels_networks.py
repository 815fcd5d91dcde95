"""Binary networks as BiBench's tracks ask (Qin et al. 2023): operator by architecture by interpreter.

For each binary operator and network, trained on the handwritten digits: accuracy kept, artifact bytes, and latency
against fp32 and int8 of the same architecture on the same interpreter, all forms in turn, one thread. Energy is what
`ferryman profile` measures where a device has a sensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.isolated import IsolatedSession
from tests.benchmarks.frame import Figure, Part, figure, interleave, progress
from tests.benchmarks.int8 import int8_pte, int8_tflite
from tests.e2e import digits
from tests.support.interpreters import DEVICE_PYTHON, python_for
from tests.zoo import binary

OPERATORS = {"ReSTE": ("sign", "reste"), "STE": ("sign", "ste"), "binary weights": ("real", "reste")}
"""Name -> activations, estimator."""
INTERPRETERS: dict[str, RuntimeName] = {
    "executorch": "executorch",
    "ai-edge-litert": "tflite",
    "tflite-runtime": "tflite",
}
_ROUNDS = 40
_CALLS = 4


def digits_cnn() -> Iterator[Figure]:
    """The demo's small CNN."""
    dense = digits.train()
    batches = digits.Batches()

    def train(activations: str, estimator: str) -> nn.Module:
        torch.manual_seed(0)
        model, _ = binarize(dense, activations=activations, estimator=estimator)
        return fine_tune(model, batches, epochs=5, lr=1e-2, teacher=dense).model

    return _tracks("digits CNN", dense, train, digits.images()[1], digits.images()[3])


def resnet18() -> Iterator[Figure]:
    """A narrow ResNet-18 (16 to 128 channels), briefly trained on the digits enlarged to 16x16."""
    trained = binary.train_resnet18()
    _, test, _, labels = binary.digits_as_images()

    def train(activations: str, estimator: str) -> nn.Module:
        if (activations, estimator) == ("sign", "reste"):
            return trained.binary
        torch.manual_seed(0)
        model, _ = binarize(trained.dense, activations=activations, estimator=estimator)
        train_images, _, train_labels, _ = binary.digits_as_images()
        batches = [(train_images[at], train_labels[at]) for at in torch.arange(len(train_images)).split(64)]
        return fine_tune(model, batches, epochs=3, lr=5e-3, teacher=trained.dense).model

    return _tracks("ResNet-18", trained.dense, train, test, labels)


def _tracks(
    name: str, dense: nn.Module, train: Callable[[str, str], nn.Module], images: torch.Tensor, labels: torch.Tensor
) -> Iterator[Figure]:
    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).float().mean())

    yield figure(f"{name}: accuracy of fp32", [100 * accuracy(dense)], "%")
    for operator, choice in OPERATORS.items():
        progress(f"{name}, {operator}: train, lower, time")
        model = train(*choice)
        yield figure(f"{name}, {operator}: accuracy kept", [100 * accuracy(model) / accuracy(dense)], "%")
        with tempfile.TemporaryDirectory() as folder:
            yield from _times(f"{name}, {operator}", dense, model, images[:1], Path(folder))


def _times(name: str, dense: nn.Module, model: nn.Module, image: torch.Tensor, folder: Path) -> Iterator[Figure]:
    files = _artifacts(dense, model, image, folder)
    for interpreter, runtime in INTERPRETERS.items():
        if interpreter == "tflite-runtime" and not DEVICE_PYTHON.exists():
            continue
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(
                    IsolatedSession(path, runtime, interpreter=interpreter, python=python_for(interpreter))
                )
                for path in files[runtime]
            ]
            calls = [_timed(session, image.numpy()) for session in sessions]
            interleave(10, *calls)
            fp32, int8, bits = interleave(_ROUNDS, *calls)
        yield figure(f"  {name} on {interpreter}: times as fast as fp32", fp32 / bits)
        yield figure(f"  {name} on {interpreter}: times as fast as int8", int8 / bits)
    for runtime, (fp32_file, _, bits_file) in files.items():
        yield figure(
            f"  {name}, {runtime}: fp32 bytes over binary's", [fp32_file.stat().st_size / bits_file.stat().st_size]
        )


def _timed(session: IsolatedSession, image: np.ndarray) -> Callable[[], float]:
    wanted = session.signature.inputs[0].dtype
    x = [image if wanted == "float32" else (100 * image).astype(wanted)]

    def run() -> float:  # the first finds what the others have left of the caches
        return min(_run_ns(session, x) for _ in range(_CALLS)) / 1e9

    return run


def _run_ns(session: IsolatedSession, x: list[np.ndarray]) -> int:
    session.run(x)
    return session.last_run_ns


def _artifacts(
    dense: nn.Module, model: nn.Module, image: torch.Tensor, folder: Path
) -> dict[RuntimeName, tuple[Path, Path, Path]]:
    """fp32, int8, binary for each runtime."""
    with quiet():
        captured = capture(make_source(dense, (image,))), lower_binary(capture(make_source(model, (image,))))[0]
        made: dict[RuntimeName, tuple[Path, Path, Path]] = {}
        for runtime, backend in BACKENDS.items():
            fp32, bits = (folder / f"{form}{backend.suffix}" for form in ("fp32", "binary"))
            for path, one in zip((fp32, bits), captured, strict=True):
                path.write_bytes(backend.lower(one).data)
            int8 = folder / f"int8{backend.suffix}"
            if runtime == "executorch":
                int8_pte(dense, image, int8)
            else:
                int8_tflite(fp32, image, int8)
            made[runtime] = (fp32, int8, bits)
    return made


PARTS = (Part((), digits_cnn), Part((), resnet18))

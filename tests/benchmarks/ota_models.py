"""Updates of weights on the wire: lossy ones of the digits network, a stream of gradients, adapters, an uplink."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.adapters import lora, merge, save_adapters
from ferryman.converter.api import convert
from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.compress.kept import largest_changes
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.devices.fleet.repository.adapted import merge_artifact
from ferryman.devices.fleet.repository.delta import EncodedPiece, encode_delta
from ferryman.devices.fleet.repository.lossy import LossyResult, lossy_artifact, lossy_package
from ferryman.runtime.package import open_package
from ferryman.runtime.pieces.index import Index, write_index
from ferryman.runtime.session import open_session
from ferryman.runtime.updates.adapters import read_adapters
from ferryman.runtime.updates.base import Codec, loss_of, shapes_of
from ferryman.runtime.updates.control import Scafcom, Scallion
from ferryman.runtime.updates.dgc import Dgc
from ferryman.runtime.updates.fedzip import FedZip, cluster, largest
from ferryman.runtime.updates.parse import parse_codec
from ferryman.runtime.updates.positions import write_positions
from ferryman.runtime.updates.rans import entropy_bits, write_symbols
from ferryman.runtime.updates.unbiased import StochasticQuantizer
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, progress
from tests.e2e import digits
from tests.support import federated

FEDZIP = "fedzip-z6-k15"
WIRE = Goal("fedzip, dense fine-tune of the digits model: float32 weights over bytes on the wire", ">=", 50)
POINTS = Goal("  accuracy lost to it, of the dense fine-tune's", "<=", 1.0, "points")
STREAM = Goal("dgc, stream of gradients: float32 over bytes, least of all updates after warm-up", ">=", 270)
STREAM_POINTS = Goal("  accuracy lost to it", "<=", 1.0, "points")
UP_BIASED = Goal("scafcom with fedzip: bytes up until 95 %, of those uncompressed", "<=", 0.05)
UP_UNBIASED = Goal("scallion, quantized: bytes up until 95 %, of those uncompressed", "<=", 0.05)
IDS = Goal("cluster ids: coded bytes over their entropy", "<=", 1.02)
PLACES = Goal("positions: coded bytes over their entropy", "<=", 1.03)
_PTE = "artifacts/fp32.pte"
_SEED = "a" * 64


def measure_fedzip() -> Iterator[Bar | Figure]:
    """Tune every weight to images turned by 20 degrees, which the base hardly reads, and send that.

    What FedZip keeps of the dense fine-tune is trained on alone, then clustered. Share, clusters and epochs were chosen
    on training images held out.
    """
    progress("lossy update of the digits network")
    torch.manual_seed(0)
    train, test, labels, answers = digits.images()
    base = _fit(digits.Digits(), train, labels, epochs=12, frozen=False)
    train, test = _turned(train), _turned(test)
    tuned = _fit(copy.deepcopy(base), train, labels, epochs=15, frozen=True)
    models = {"before": base, "fine-tuned": tuned, "the kept trained on": _fit_kept(base, tuned, train, labels)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = list(train[:8].split(1))
        with quiet():
            paths = {
                at: convert(one, (train[:1],), output=folder / at, name="digits", calibration=calibration).path
                for at, one in models.items()
            }
        result = lossy_package(paths["before"], paths["the kept trained on"], FEDZIP, folder / "lossy.ferry")
        artifacts = {at: _read(path, _PTE) for at, path in {**paths, "sent": result.package}.items()}
        at_once = lossy_artifact(_PTE, artifacts["before"], artifacts["fine-tuned"], "executorch", parse_codec(FEDZIP))
        artifacts["fine-tuned, sent without training on"] = at_once.data if at_once else b""
        reached = {at: _accuracy(data, folder, test, answers) for at, data in artifacts.items()}
        wires = {path: _wire(paths["before"], result, path) for path in result.hints}
    weights = 4 * sum(one.numel() for one in _folded(base))
    yield WIRE.measured([weights / max(wires.values())])
    yield POINTS.measured([100 * (reached["fine-tuned"] - reached["sent"])])
    for words, share in reached.items():
        yield figure(f"  accuracy, {words}", [100 * share], "%")
    yield figure("  float32 weights", [weights / 1e3], "kB")
    for path, size in wires.items():
        yield figure(f"  pieces and index of {Path(path).suffix}", [size / 1e3], "kB")
    yield figure("  weights over sparse pieces alone", [result.lossy.ratio])
    yield figure("  relative error of the update", [result.lossy.relative_error])
    yield figure("  worst golden vector", [result.lossy.sqnr_min_db], "dB")
    exact = _size(encode_delta(artifacts["before"], artifacts["fine-tuned"]))
    yield figure("  the exact delta of the dense fine-tune, .pte", [exact / 1e3], "kB")


def measure_dgc() -> Iterator[Bar | Figure]:
    """Four workers train together, each sending a thousandth of its gradients; beside SGD with momentum."""
    progress("stream of gradients")
    (x, y), test = federated.digits()
    plain, _ = _workers(x, y, federated.Plain(), 0.9)
    dgc, ratios = _workers(x, y, Dgc(0.001, warm_up=_WARM_UP, clip=4.0), 0.0)
    yield STREAM.measured([min(ratios[_WARM_UP:])])
    yield STREAM_POINTS.measured([100 * (federated.accuracy(plain, *test) - federated.accuracy(dgc, *test))])
    yield figure("  accuracy with all of the gradients", [100 * federated.accuracy(plain, *test)], "%")
    yield figure("  accuracy with dgc", [100 * federated.accuracy(dgc, *test)], "%")
    yield figure("  float32 over bytes after warm-up", ratios[_WARM_UP:])
    yield figure("  float32 over bytes, warm-up and all", [len(ratios) / sum(1 / one for one in ratios)])
    large = {"w": np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)}
    yield figure("  of four million gradients at random", [loss_of(Dgc().encode(large, {}), large, large).ratio])


def measure_adapters() -> Iterator[Bar | Figure]:
    """LoRA of rank 4 in each linear layer, alone and as the delta of the merged artifact."""
    progress("adapters")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).eval()
    adapters = {
        f"{at}.{name}": one
        for at in (0, 2, 4)
        for name, one in lora(
            model[at], torch.randn(4, model[at].in_features) * 0.05, torch.randn(model[at].out_features, 4) * 0.05
        ).items()
    }
    with tempfile.TemporaryDirectory() as name, quiet():
        file = Path(name) / "adapters"
        save_adapters(file, model, adapters)
        tensors = read_adapters(file)
        lowered = {
            runtime: [
                BACKENDS[runtime].lower(capture(make_source(one, (torch.zeros(1, 64),)))).data
                for one in (model, merge(model, adapters))
            ]
            for runtime in ("executorch", "tflite")
        }
    for runtime, (old, new) in lowered.items():
        made, hints = merge_artifact(runtime, old, runtime, tensors)
        alone, whole = _size(encode_delta(old, made, hints.pieces)), _size(encode_delta(old, new))
        yield figure(f"  adapters on {runtime}: pieces and index", [alone / 1e3], "kB")
        yield figure(f"  delta of the merged artifact on {runtime}", [whole / 1e3], "kB")
        yield figure(f"  delta over adapters on {runtime}", [whole / alone])


def measure_uplink() -> Iterator[Bar | Figure]:
    """Ten devices with two classes of digits or so each, until the server's model is right on 95 % of the others."""
    progress("uplink of federated training")
    (x, y), test = federated.digits()
    setting = federated.Setting(federated.by_class(x, y, 10))
    ways = {
        "uncompressed": (Scallion, federated.Plain()),
        "scallion, quantized": (
            lambda codec, shapes: Scallion(codec, shapes, scale=0.5),
            StochasticQuantizer(1, seed=1),
        ),
        "scafcom with fedzip": (lambda codec, shapes: Scafcom(codec, shapes, momentum=0.5), FedZip(0.02, 7)),
    }
    up = {}
    for name, (make, codec) in ways.items():
        for rounds, (server, sent) in enumerate(federated.rounds_of(setting, make, codec, hidden=64), 1):
            if federated.accuracy(server.model, *test) >= _TARGET or rounds == _ROUNDS_MAX:
                up[name] = sent
                yield figure(f"  {name}: rounds until 95 %", [rounds])
                yield figure(f"  {name}: bytes up until then", [sent / 1e3], "kB")
                break
    yield UP_UNBIASED.measured([up["scallion, quantized"] / up["uncompressed"]])
    yield UP_BIASED.measured([up["scafcom with fedzip"] / up["uncompressed"]])


def measure_entropy() -> Iterator[Bar | Figure]:
    """FedZip's ids and positions of a million numbers against what they are worth."""
    values = np.random.default_rng(0).standard_t(4, 1_000_000).astype(np.float32)
    coded = cluster(values, largest(values, 0.02), 15)
    share = len(coded.positions) / len(values)
    worth = -len(values) * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    yield IDS.measured([len(write_symbols(coded.ids)) / (entropy_bits(coded.ids) / 8)])
    yield PLACES.measured([len(write_positions(coded.positions)) / worth])
    yield figure("  bits an id", [8 * len(write_symbols(coded.ids)) / len(coded.ids)])
    yield figure("  bits a position", [8 * len(write_positions(coded.positions)) / len(coded.positions)])


_KEPT_PERCENT = 6
_WARM_UP, _UPDATES, _TARGET, _ROUNDS_MAX, _WORKERS = 40, 300, 0.95, 400, 4


def _workers(x: np.ndarray, y: np.ndarray, codec: Codec, momentum: float) -> tuple[dict, list[float]]:
    """A model trained by workers that send gradients by `codec`; `momentum` is the server's."""
    model = federated.start(hidden=512)
    states: list[dict] = [{} for _ in range(_WORKERS)]
    velocity = {name: np.zeros_like(one) for name, one in model.items()}
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(_UPDATES):
        total = {name: np.zeros_like(one) for name, one in model.items()}
        for state in states:
            some = random.choice(len(x), 32)
            gradient = federated.gradient(model, x[some], y[some])
            data = codec.encode(gradient, state)
            ratios.append(loss_of(data, gradient, gradient).ratio)
            for name, one in codec.decode(data, shapes_of(gradient)).items():
                total[name] += one / _WORKERS
        velocity = {name: np.float32(momentum) * velocity[name] + one for name, one in total.items()}
        model = federated.walk(model, velocity, 0.05)
    return model, [float(one) for one in np.array(ratios).reshape(-1, _WORKERS).mean(1)]


def _fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, *, frozen: bool) -> nn.Module:
    """Train; `frozen`: by plain steps, with batch norms as they are but for their shifts, as models are tuned."""
    scales = [id(one.weight) for one in model.modules() if isinstance(one, nn.BatchNorm2d)] if frozen else []
    parameters = [one for one in model.parameters() if id(one) not in scales]
    optimizer = (
        torch.optim.SGD(parameters, lr=0.005, momentum=0.9) if frozen else torch.optim.AdamW(parameters, lr=3e-3)
    )
    model.train(not frozen)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def _fit_kept(base: nn.Module, tuned: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    model = copy.deepcopy(tuned)
    with largest_changes(model, base, _KEPT_PERCENT):
        return _fit(model, images, labels, epochs=15, frozen=True)


def _turned(images: torch.Tensor) -> torch.Tensor:
    angle = np.deg2rad(20)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]], dtype=torch.float32)
    grid = functional.affine_grid(turn.expand(len(images), 2, 3), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _folded(model: nn.Module) -> Iterator[torch.Tensor]:
    """Weights as an artifact has them: a batch norm leaves but a bias."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield layer.weight
            yield torch.empty(len(layer.weight))


def _accuracy(artifact: bytes, folder: Path, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of what a device runs."""
    file = folder / "artifact.pte"
    file.write_bytes(artifact)
    with open_session(file, "executorch") as session:
        found = [int(session.run([one.numpy()[None]])[0].argmax()) for one in images]
    return float(np.mean(np.array(found) == labels.numpy()))


def _read(package: Path, path: str) -> bytes:
    with open_package(package) as opened:
        return opened.read(path)


def _wire(base: Path, result: LossyResult, path: str) -> int:
    before, after = _read(base, path), _read(result.package, path)
    return _size(encode_delta(before, after, result.hinting(path, before, after)))


def _size(pieces: Sequence[EncodedPiece]) -> int:
    """Bytes that travel, with the index."""
    placed, at = [], 0
    for one in pieces:
        placed.append(one.piece(0, at))
        at += len(one.stored)
    return at + len(write_index(Index(packs=(_SEED,), pieces=tuple(placed)))[0])


PARTS = (
    Part((WIRE, POINTS), measure_fedzip),
    Part((STREAM, STREAM_POINTS), measure_dgc),
    Part((), measure_adapters),
    Part((UP_UNBIASED, UP_BIASED), measure_uplink),
    Part((IDS, PLACES), measure_entropy),
)

"""SCALLION and SCAFCOM against training without compression, on devices that each see two classes of digits."""

from itertools import islice

import numpy as np
import pytest

from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.updates.base import shapes_of
from ferryman.runtime.updates.control import Scafcom, Scallion, Server, zeros
from ferryman.runtime.updates.fedzip import FedZip
from ferryman.runtime.updates.unbiased import RandomK, StochasticQuantizer
from tests.support import federated as nets

DEVICES, STEPS, RATE = 5, 5, 0.5
TRAIN, TEST = nets.digits()
PARTS = nets.by_class(*TRAIN, DEVICES)
EXACT = FedZip(1.0, 256)


def train(make, codec, rounds, hidden=0, present=None):
    """A server, and the bytes that went up."""
    return next(
        islice(nets.rounds_of(nets.Setting(PARTS, STEPS, RATE), make, codec, hidden, present), rounds - 1, None)
    )


def scaffold(rounds):
    """As the paper's authors write SCAFFOLD, with both its tensors on the wire."""
    x = nets.start()
    control = zeros(shapes_of(x))
    own = [zeros(shapes_of(x)) for _ in range(DEVICES)]
    for _ in range(rounds):
        moves, changes = [], []
        for at, part in enumerate(PARTS):
            y = x
            for _ in range(STEPS):
                slope = nets.gradient(y, *part)
                y = nets.walk(y, {n: slope[n] - own[at][n] + control[n] for n in slope}, RATE)
            new = {n: own[at][n] - control[n] + (x[n] - y[n]) / np.float32(STEPS * RATE) for n in x}
            moves.append({n: y[n] - x[n] for n in x})
            changes.append({n: new[n] - own[at][n] for n in x})
            own[at] = new
        x = {n: x[n] + sum(one[n] for one in moves) / DEVICES for n in x}
        control = {n: control[n] + sum(one[n] for one in changes) / DEVICES for n in x}
    return x


def test_without_compression_it_is_scaffold():
    server, _ = train(Scallion, nets.Plain(), 10)
    wanted = scaffold(10)
    for name, one in server.model.items():
        assert np.allclose(one, wanted[name], rtol=1e-3, atol=1e-5)


def test_plain_averaging_does_worse_where_devices_differ():
    """What the variates are for."""
    model = nets.start()
    for _ in range(30):
        ends = []
        for part in PARTS:
            local = model
            for _ in range(STEPS * 4):
                local = nets.walk(local, nets.gradient(local, *part), RATE)
            ends.append(local)
        model = {name: np.mean([one[name] for one in ends], 0) for name in model}
    server, _ = train(Scallion, nets.Plain(), 30)
    assert nets.loss(server.model, *TRAIN) < nets.loss(model, *TRAIN)


@pytest.mark.parametrize("hidden", [0, 32], ids=["logistic regression", "hidden layer"])
@pytest.mark.parametrize(
    ("make", "codec", "least_ratio"),
    [
        (lambda codec, shapes: Scallion(codec, shapes, scale=0.2), RandomK(0.2, seed=1), 4.8),
        (lambda codec, shapes: Scallion(codec, shapes, scale=0.2), StochasticQuantizer(1, seed=1), 20),
        (lambda codec, shapes: Scafcom(codec, shapes, momentum=0.5), FedZip(0.05, 7), 20),
    ],
    ids=["scallion, random-k", "scallion, quantized", "scafcom, fedzip"],
)
def test_compressed_training_ends_where_the_uncompressed_does(make, codec, least_ratio, hidden):
    rounds = 60
    exact, exact_bytes = train(Scallion, nets.Plain(), rounds, hidden)
    server, sent = train(make, codec, rounds, hidden)
    assert nets.accuracy(exact.model, *TEST) > 0.9
    assert nets.accuracy(server.model, *TEST) > nets.accuracy(exact.model, *TEST) - 0.02
    assert exact_bytes / sent > least_ratio


@pytest.mark.parametrize("make", [Scallion, Scafcom])
def test_devices_may_come_seldom(make):
    codec = StochasticQuantizer(4, seed=2) if make is Scallion else FedZip(0.2, 15)
    server, _ = train(
        lambda codec, shapes: make(codec, shapes, **({"scale": 0.5} if make is Scallion else {})), codec, 80, present=2
    )
    assert nets.accuracy(server.model, *TEST) > 0.88


def test_what_was_not_accepted_is_as_if_it_had_not_been():
    model = nets.start()
    device = Scallion(StochasticQuantizer(seed=1), shapes_of(model))
    mean = zeros(shapes_of(model))
    device.send(model, nets.walk(model, nets.gradient(model, *PARTS[0]), RATE), mean, RATE, 1)
    assert not any(one.any() for one in device.variate.values())
    device.send(model, nets.walk(model, nets.gradient(model, *PARTS[0]), RATE), mean, RATE, 1)
    device.accepted()
    assert device.variate["w"].any()
    with pytest.raises(CallerError, match="send"):
        device.accepted()


def test_a_bad_message_changes_nothing():
    model = nets.start()
    server = Server(FedZip(), model, 2)
    good = FedZip().encode(nets.gradient(model, *PARTS[0]), {})
    with pytest.raises(PackageError):
        server.step([good, good[:-3]], 1.0)
    with pytest.raises(CallerError):
        server.step([], 1.0)
    assert server.model is model
    assert not any(one.any() for one in server.mean.values())


def test_the_servers_mean_is_that_of_the_devices():
    model = nets.start()
    server = Server(EXACT, model, 2)
    devices = [Scallion(EXACT, shapes_of(model)) for _ in range(2)]
    for _ in range(3):
        received = []
        for device, part in zip(devices, PARTS[:2], strict=True):
            correction = device.correction(server.mean)
            slope = nets.gradient(server.model, *part)
            after = nets.walk(server.model, {n: slope[n] + correction[n] for n in slope}, RATE)
            received.append(device.send(server.model, after, server.mean, RATE, 1))
            device.accepted()
        server.step(received, RATE)
    for name, one in server.mean.items():
        assert np.allclose(one, (devices[0].variate[name] + devices[1].variate[name]) / 2, atol=1e-6)

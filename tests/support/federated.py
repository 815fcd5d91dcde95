"""A small network in numpy that learns scikit-learn's digits, and devices that each see few of the classes."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from ferryman.runtime.updates.base import shapes_of
from ferryman.runtime.updates.control import Server

CLASSES = 10


def digits():
    """Train and test images and labels."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x, y = (pixels[order] / 16).astype(np.float32), labels[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def by_class(x, y, devices):
    """Each device has two classes or so."""
    order = np.argsort(y, kind="stable")
    return [(x[part], y[part]) for part in np.array_split(order, devices)]


def start(hidden=0, seed=0):
    """Weights of a logistic regression, or with `hidden` of a network with one hidden layer."""
    if not hidden:
        return {"w": np.zeros((64, CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)}
    random = np.random.default_rng(seed)
    return {
        "w0": (random.standard_normal((64, hidden)) / 8).astype(np.float32),
        "b0": np.zeros(hidden, np.float32),
        "w1": (random.standard_normal((hidden, CLASSES)) / np.sqrt(hidden)).astype(np.float32),
        "b1": np.zeros(CLASSES, np.float32),
    }


def forward(model, x):
    if "w" in model:
        return x, x @ model["w"] + model["b"]
    hidden = np.maximum(x @ model["w0"] + model["b0"], 0)
    return hidden, hidden @ model["w1"] + model["b1"]


def gradient(model, x, y):
    """Of the mean cross-entropy."""
    hidden, logits = forward(model, x)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[np.arange(len(y)), y] -= 1
    wrong = (shares / len(y)).astype(np.float32)
    if "w" in model:
        return {"w": x.T @ wrong, "b": wrong.sum(0)}
    back = wrong @ model["w1"].T * (hidden > 0)
    return {"w0": x.T @ back, "b0": back.sum(0), "w1": hidden.T @ wrong, "b1": wrong.sum(0)}


def accuracy(model, x, y):
    return float((forward(model, x)[1].argmax(1) == y).mean())


def loss(model, x, y):
    logits = forward(model, x)[1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean())


def walk(model, gradients, rate):
    """One step."""
    return {name: one - np.float32(rate) * gradients[name] for name, one in model.items()}


class Plain:
    """No compression."""

    name = "plain"

    def encode(self, update, state):
        return b"".join(update[name].tobytes() for name in sorted(update))

    def decode(self, data, shapes):
        whole = np.frombuffer(data, np.float32)
        ends = np.cumsum([int(np.prod(shapes[name])) for name in sorted(shapes)])
        parts = np.split(whole, ends[:-1])
        return {name: one.reshape(shapes[name]) for name, one in zip(sorted(shapes), parts, strict=True)}


class Setting(NamedTuple):
    """Devices that train together."""

    parts: list
    steps: int = 5
    rate: float = 0.5


def rounds_of(setting, make, codec, hidden=0, present=None, seed=0):
    """Server and bytes that went up so far, after each round; `make` gives a device's half for (codec, shapes)."""
    model = start(hidden)
    count = len(setting.parts)
    server = Server(codec, model, count)
    devices = [make(codec, shapes_of(model)) for _ in range(count)]
    random = np.random.default_rng(seed)
    sent = 0
    while True:
        received = []
        for at in random.choice(count, present or count, replace=False):
            device, (x, y) = devices[at], setting.parts[at]
            local, correction = server.model, device.correction(server.mean)
            for _ in range(setting.steps):
                slope = gradient(local, x, y)
                local = walk(local, {name: one + correction[name] for name, one in slope.items()}, setting.rate)
            received.append(device.send(server.model, local, server.mean, setting.rate, setting.steps))
            device.accepted()
        sent += sum(map(len, received))
        server.step(received, setting.rate * setting.steps)
        yield server, sent

"""SCALLION and SCAFCOM: devices that train on data of their own kind, with a compressed uplink of one update.

As in "Stochastic Controlled Averaging for Federated Learning with Communication Compression".

A device keeps a control variate: what its gradients are like, as far as the server knows. It trains with
`gradient + correction`, where the correction is the mean of all variates less its own, and sends how far its mean
gradient is from its variate, compressed. The server adds what it receives to both the model and the mean. That is
SCAFFOLD with one tensor a weight on the wire instead of two; without compression it is SCAFFOLD to the number.

What is compressed is a difference that shrinks as training settles, so a compressor's error vanishes with it, and a
device that comes seldom is no problem: its variate waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.updates.base import Codec, Floats, Shapes, State, Update

Tensors = dict[str, Floats]


@dataclass
class Scallion:
    """A device's half, for unbiased compressors; `scale` below 1 damps their variance (the paper's alpha)."""

    codec: Codec
    shapes: Shapes
    scale: float = 1.0
    variate: Tensors = field(default_factory=dict)
    """As the server knows it."""
    state: State = field(default_factory=dict)
    _sent: Tensors | None = None

    def __post_init__(self) -> None:
        if not self.variate:
            self.variate = zeros(self.shapes)

    def correction(self, mean: Update) -> Tensors:
        """What to add to each gradient of local training; `mean` is the server's."""
        return {name: mean[name] - one for name, one in self.variate.items()}

    def send(self, before: Update, after: Update, mean: Update, rate: float, steps: int) -> bytes:
        """What goes up once a device has trained.

        Args:
            before: the weights it began with.
            after: those it ended with, after `steps` plain steps at `rate`, each with the correction.
            mean: of all variates, the one the correction was made with.
            rate: local learning rate.
            steps: how many.
        """
        travelled = np.float32(rate * steps)
        gradient = {
            name: (before[name] - after[name]) / travelled - mean[name] + own for name, own in self.variate.items()
        }
        increment = self._increment(gradient)
        data = self.codec.encode(increment, self.state)
        self._sent = self.codec.decode(data, self.shapes)
        return data

    def accepted(self) -> None:
        """The server has what was sent: from now on its idea of the variate is the new one.

        Raises:
            CallerError: nothing was sent since.
        """
        if self._sent is None:
            raise CallerError("nothing was sent that could be accepted; call `send` first")
        self.variate = {name: one + self._sent[name] for name, one in self.variate.items()}
        self._sent = None

    def _increment(self, gradient: Tensors) -> Tensors:
        return {name: np.float32(self.scale) * (gradient[name] - own) for name, own in self.variate.items()}


@dataclass
class Scafcom(Scallion):
    """A device's half, for biased compressors such as top-k: it compresses towards a local momentum of gradients.

    What a compressor leaves out stays in the difference between momentum and variate: that is its error feedback.
    """

    momentum: float = 0.2
    """Weight of the newest gradient (the paper's beta)."""
    _velocity: Tensors = field(default_factory=dict)

    def _increment(self, gradient: Tensors) -> Tensors:
        new = np.float32(self.momentum)
        kept = self._velocity or zeros(self.shapes)
        self._velocity = {name: (1 - new) * kept[name] + new * one for name, one in gradient.items()}
        return {name: one - self.variate[name] for name, one in self._velocity.items()}


@dataclass
class Server:
    """The other half, for both."""

    codec: Codec
    model: Tensors
    devices: int
    """How many there are, of which some come each round."""
    mean: Tensors = field(default_factory=dict)
    """Of all variates; devices get it with the model."""

    def __post_init__(self) -> None:
        if not self.mean:
            self.mean = zeros({name: one.shape for name, one in self.model.items()})

    def step(self, received: Sequence[bytes], rate: float) -> None:
        """One round.

        Args:
            received: one message a device that took part.
            rate: the server's learning rate, times the local one, times the local steps.

        Raises:
            PackageError: one is no message of such a model; nothing changes.
            CallerError: nobody took part.
        """
        if not received:
            raise CallerError("nobody took part in the round; wait for a device")
        shapes = {name: one.shape for name, one in self.model.items()}
        total = _sum([self.codec.decode(data, shapes) for data in received])
        far, share, part = (np.float32(one) for one in (rate, len(received) / self.devices, 1 / len(received)))
        step: Tensors = {name: part * one for name, one in total.items()}
        self.model = {name: one - far * (self.mean[name] + step[name]) for name, one in self.model.items()}
        self.mean = {name: one + share * step[name] for name, one in self.mean.items()}


def zeros(shapes: Shapes) -> Tensors:
    """Of a model."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _sum(updates: Sequence[Mapping[str, Floats]]) -> Tensors:
    total = dict(updates[0])
    for update in updates[1:]:
        total = {name: one + update[name] for name, one in total.items()}
    return total

"""Seconds of a model: of an interpreter here, and of whatever else is given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ferryman.converter.prune.latency import checked, measured_latency, profiled_latency
from ferryman.converter.prune.structured import prune
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.package import open_package
from tests.unit.converter.prune.nets import ResNet, image


def test_a_budget_takes_any_function():
    seen = []

    def latency(model):
        seen.append(1e-6 * sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Conv2d)))
        return seen[-1]

    done = prune(ResNet().eval(), "pruned-50latency", example=image(), latency=latency)
    assert done.after.seconds <= 0.5 * done.before.seconds
    assert 4 < len(seen) < 40


class Camera:
    """A device that is pushed packages and profiles them: a byte takes a nanosecond, the first run longer."""

    def __init__(self):
        self.pushed = []

    def push(self, package):
        with open_package(package) as held:
            self.pushed.append([variant.name for variant in held.manifest.variants])

    def profile(self, package):
        took = package.stat().st_size
        return (SimpleNamespace(samples_ns=(5 * took, took, took)), SimpleNamespace(samples_ns=(9 * took,) * 3))


@pytest.mark.slow
def test_a_named_device_is_pushed_a_package_and_profiles_it():
    camera = Camera()

    def place(package):
        camera.push(package)
        return camera.profile(package)

    latency = profiled_latency(image(), place, to="executorch")
    wide, narrow = latency(ResNet(32).eval()), latency(ResNet(8).eval())
    assert 0 < 3 * narrow < wide
    assert camera.pushed == [["executorch-fp32"]] * 2
    with pytest.raises(CallerError, match="place gave no measurement"):
        profiled_latency(image(), lambda _: (), to="executorch")(ResNet(8).eval())


def test_an_interpreter_must_be_known():
    with pytest.raises(CallerError, match=r"interpreter 'abacus' is not known; there are: .*executorch"):
        measured_latency(image(), "abacus")


@pytest.mark.parametrize("found", [0.0, -1, "1 s", None, True, float("inf")])
def test_what_is_no_time_is_refused(found):
    with pytest.raises(CallerError, match="latency must give seconds"):
        checked(lambda _: found)(nn.Identity())


@pytest.mark.slow
@pytest.mark.parametrize("interpreter", ["executorch", "ai-edge-litert"])
def test_a_narrower_model_takes_less_on_an_interpreter(interpreter):
    torch.manual_seed(0)
    net, inputs = ResNet(48).eval(), (torch.randn(1, 1, 32, 32),)
    done = prune(net, "pruned-60latency", example=inputs, latency=measured_latency(inputs, interpreter))
    assert done.after.macs < 0.75 * done.before.macs
    assert done.after.seconds < 0.75 * done.before.seconds


@pytest.mark.slow
def test_this_machine_is_a_device_too():
    from ferryman import find_device, profile, read_devices

    local = find_device(read_devices(), "local")
    latency = profiled_latency(image(), lambda package: profile(package, local), to="executorch")
    assert 0 < latency(ResNet(8).eval()) < 1

"""What is said of a form beside fp32, and what `strict` makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ferryman.converter.api import convert
from ferryman.converter.honest import Compared, table
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.errors import CallerError, ParityError, RuntimeCrash
from ferryman.runtime.package import open_package
from tests.support.packages import add_model


def compared(**changes) -> Compared:
    fields = {
        "form": "4bit", "runtime": "tflite", "interpreter": "ai-edge-litert", "size_bytes": 50, "fp32_bytes": 100,
        "latency_us": 10.0, "fp32_us": 20.0, "speedup": (1.9, 2.0, 2.1), "sqnr_db": 30.0, "top1_agreement": None,
        "speedup_best": changes.get("speedup", (0, 2.0))[1],
    } | changes  # fmt: skip
    return Compared(**fields)


def test_a_gain_is_no_complaint():
    assert compared().complaints == []
    assert compared(speedup=(0.9, 0.98, 1.01)).complaints == []  # no telling
    assert "0.500" in table([compared()])


def test_what_is_no_gain_is_said():
    assert compared(size_bytes=100).complaints == ["4bit on ai-edge-litert is not smaller than fp32"]
    assert compared(speedup=(0.4, 0.5, 0.6)).complaints == [
        "4bit on ai-edge-litert is slower than fp32 (2.00x the time)"
    ]


@pytest.mark.parametrize(
    ("speedup", "best"), [((0.19, 0.2, 0.24), 1.04), ((0.24, 0.31, 2.87), 0.7), ((0.9, 1.1, 1.5), 1.1)]
)
def test_what_noise_hides_is_said_to_be_hidden(speedup, best):
    (complaint,) = compared(speedup=speedup, speedup_best=best).complaints
    assert "other work on this machine hides which is faster" in complaint


def test_a_gain_that_scatters_is_told_with_a_caution_and_is_no_complaint():
    wild = compared(speedup=(127.13, 3539.33, 5492.83))
    assert wild.complaints == []
    assert "was 127.13 to 5492.83 times as fast as fp32: other work on this machine hides by how much" in wild.caution
    assert compared().caution == ""
    assert compared(speedup=(0.24, 0.31, 2.87), speedup_best=0.7).caution == ""  # a complaint says it


def test_what_was_asked_for_and_is_not_held_is_said():
    assert compared(asked_db=30.0, sqnr_db=28.0).complaints == []
    (complaint,) = compared(asked_db=30.0, sqnr_db=6.5).complaints
    assert "holds 6.5 dB, where 30 were asked for" in complaint


def test_artifacts_are_timed_in_turn(tmp_path):
    paths = [tmp_path / f"{name}.tflite" for name in "ab"]
    for path in paths:
        path.write_bytes(add_model(1.0))
    times = time_beside(paths, "ai-edge-litert", [[np.zeros((1, 4), np.float32)]] * len(paths), rounds=5)
    assert [len(one) for one in times] == [5, 5]
    assert all(0 < second < 1 for one in times for second in one)


def test_an_artifact_that_falls_is_an_error(tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"no model at all")
    with pytest.raises(RuntimeCrash, match="ai-edge-litert could not be timed"):
        time_beside([path], "ai-edge-litert", [[np.zeros((1, 4), np.float32)]])


class Tiny(nn.Module):
    """So small that packed weights and their scales are more than floats."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 2)

    def forward(self, x):
        return self.inside(x)


def test_strict_refuses_what_is_not_smaller_and_writes_nothing(tmp_path):
    torch.manual_seed(0)
    arguments = {"form": "4bit", "output": tmp_path, "name": "tiny", "to": ["tflite"]}
    with pytest.raises(ParityError, match=r"4bit on ai-edge-litert is not smaller than fp32.*as --strict asks"):
        convert(Tiny().eval(), (torch.randn(1, 2),), strict=True, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_package_holds_several_forms_and_devices_have_a_bar_for_each(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()).eval()
    made = convert(
        module, (torch.randn(1, 3, 12, 12),), form=["fp32", "int8", "4bit"], output=tmp_path, name="several",
        calibration=[torch.randn(1, 3, 12, 12) for _ in range(4)],
    )  # fmt: skip
    with open_package(made.path) as package:
        variants = {variant.name: variant for variant in package.manifest.variants}
    assert set(variants) == {f"{on}-{form}" for on in ("executorch", "tflite") for form in ("fp32", "int8", "4bit")}
    assert variants["tflite-fp32"].sqnr_min_db is None
    bar, proofs = variants["tflite-4bit"].sqnr_min_db, variants["tflite-4bit"].verified
    assert bar == pytest.approx(max(5, min(proof.sqnr_db for proof in proofs) - 3), abs=0.11)
    assert {one.form for one in made.compared} == {"int8", "4bit"}
    assert all(one.size_bytes < one.fp32_bytes for one in made.compared)


@pytest.mark.parametrize("forms", [[], ["int8", "int8"]])
def test_forms_are_one_or_more_different_ones(forms):
    with pytest.raises(CallerError, match="forms must be at least one, and different ones"):
        convert(Tiny().eval(), (torch.randn(1, 2),), form=forms)


def test_a_form_that_loses_too_much_says_what_helps(tmp_path):
    torch.manual_seed(0)
    with pytest.raises(ParityError, match=r"rounding loses too much: .*calibrate it.*give it more bits"):
        convert(
            nn.Linear(64, 64).eval(), (torch.randn(1, 64),), form="2bit", to=["tflite"], output=tmp_path,
            sqnr_min_db=80.0,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())

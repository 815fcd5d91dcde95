"""What docs/microcontrollers.md says of the package format: it holds a variant that no Linux device runs."""

from __future__ import annotations

import pytest

from ferryman.runtime.checks import check_device, lacking
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.package import open_package
from tests.support.packages import write_tiny_package

BARE = {"executorch-bare-metal": "1.5.1"}


@pytest.fixture
def manifest(tmp_path):
    path = write_tiny_package(tmp_path / "mcu.ferry", interpreters=BARE, isa=("mve",))
    with open_package(path) as opened:
        return opened.manifest


def test_an_interpreter_and_instruction_set_that_no_device_has_can_be_required(manifest):
    (variant,) = manifest.variants
    assert variant.requires.interpreters == BARE
    assert variant.requires.isa == ("mve",)
    assert decode(encode(manifest), Manifest) == manifest


def test_a_linux_device_refuses_it_before_anything_is_written(manifest):
    isa = instruction_sets(CPUINFO.read_text())
    with pytest.raises(DeviceError, match="needs the instruction sets mve, which this processor lacks"):
        check_device(manifest, isa)
    (variant,) = manifest.variants
    assert usable_interpreters(variant) == {}


def test_a_microcontroller_is_checked_by_the_same_function(manifest):
    (variant,) = manifest.variants
    assert lacking(variant, frozenset({"mve", "dsp"}), 0, BARE) == ""
    assert "mve" in lacking(variant, frozenset({"dsp"}), 0, BARE)


def test_a_field_that_this_ferryman_does_not_know_is_passed_over(manifest):
    data = encode(manifest).replace(b'"requires":{', b'"requires":{"flash_bytes":1,"planned_bytes":[4096],')
    assert decode(data, Manifest) == manifest

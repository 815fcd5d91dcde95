"""What is said of a package for people."""

from __future__ import annotations

from types import SimpleNamespace

from ferryman.describe import _layers
from ferryman.runtime.contracts.manifest import LayerForm


def test_how_many_layers_took_a_form_is_not_read_as_a_part_of_its_name():
    layers = (LayerForm(path="fc", form="4bit", note="own kernel"), LayerForm(path="conv", form="fp32", note="small"))
    told = [line.strip() for line in _layers(SimpleNamespace(layers=layers, form="4bit"))]
    assert told == ["layers     1 of 2 4bit", "1 x 4bit: own kernel (fc)", "1 x fp32: small (conv)"]

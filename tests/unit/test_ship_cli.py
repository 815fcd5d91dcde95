"""`ferryman ship`: what its conversion says."""

from __future__ import annotations

from types import SimpleNamespace

from ferryman.convert_cli import How
from ferryman.converter import api
from ferryman.converter.pipeline import Conversion
from ferryman.ship_cli import _converted
from tests.unit.converter.test_honest import compared

HOW = How(form=("4bit",), calibrate=None, strict=True, name=None, min_sqnr=30.0, interpreter=("tflite-runtime",))


def test_a_form_that_is_slower_is_said(tmp_path, monkeypatch, capsys):
    package = tmp_path / "net.ferry"
    package.write_bytes(b"1234")
    slow = compared(speedup=(0.4, 0.5, 0.6), speedup_best=0.5)
    made = Conversion(package, "0" * 64, SimpleNamespace(name="net"), compared=(slow, compared()))
    asked = {}
    monkeypatch.setattr(api, "convert", lambda _source, **how: asked.update(how) or made)
    assert _converted("models:net", ("tflite",), HOW, tmp_path) == package
    assert "note: 4bit on ai-edge-litert is slower than fp32 (2.00x the time)\nnet: 4 bytes" in capsys.readouterr().err
    assert (asked["strict"], asked["sqnr_min_db"], asked["interpreters"]) == (True, 30.0, ("tflite-runtime",))

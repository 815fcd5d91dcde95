"""Where the small artifacts are that tests run; `pte.py` and `shared.py` here make them."""

from __future__ import annotations

from pathlib import Path

_GOLDEN = Path(__file__).parents[1] / "golden"
PTE = _GOLDEN / "pte"
SHARED = _GOLDEN / "shared"

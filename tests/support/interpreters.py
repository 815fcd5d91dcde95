"""Where the three interpreters are when testing: two here, tflite-runtime in the device environment."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEVICE_PYTHON = ROOT / ".venv-device" / "bin" / "python"
INTERPRETERS = ("executorch", "ai-edge-litert", "tflite-runtime")


def python_for(interpreter: str) -> Path | None:
    """The Python that has `interpreter`; None: this one."""
    return DEVICE_PYTHON if interpreter == "tflite-runtime" else None

"""One file a runtime."""

from __future__ import annotations

from ferryman.converter.backends.base import Backend
from ferryman.converter.backends.executorch import ExecutorchBackend
from ferryman.converter.backends.tflite import TfliteBackend
from ferryman.runtime.contracts.manifest import RuntimeName

BACKENDS: dict[RuntimeName, Backend] = {"executorch": ExecutorchBackend(), "tflite": TfliteBackend()}

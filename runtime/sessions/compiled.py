"""TFLite artifacts on ai-edge-litert's CompiledModel, which alone of its two interfaces keeps packed weights.

Used where packed weights are shared by layers or kept on disk, and the artifact is one that it takes: no operators of
ferryman's own, no dimension that varies, tensors of numpy's types that it has, at least one signature.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
import math
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ferryman.runtime import cache as caches
from ferryman.runtime.cache import Cache, CacheUse
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeFault
from ferryman.runtime.contracts.tensor import Array, Signature, TensorSpec
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.session import Session, exactly, fit
from ferryman.runtime.sessions.probe import same_answers
from ferryman.runtime.sessions.tflite import TfliteSession, choose_entry, natural
from ferryman.runtime.weights import look_through

INTERPRETER = "ai-edge-litert"
_DTYPES = frozenset(("float32", "float16", "int32", "int8", "uint8", "bool"))
"""Those its buffers take."""
_IN_MEMORY = ":memory"
_CHATTER = re.compile(rb"(INFO|WARNING|VERBOSE): |\xe2\x94\x94 |WARNING: All log|I0000 ")
_NOWHERE = "/nonexistent"
"""For plug-ins that it would look for: of makers of other processors."""

_quiet = threading.Lock()
_log = logging.getLogger("ferryman.litert")
_log.addHandler(logging.NullHandler())


_ARM_NEEDS = frozenset(
    ("fp", "asimd", "pmull", "sha2", "crc32", "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "asimddp")
)
"""What an Arm processor must have: libLiteRtWebGpuAccelerator.so of 2.3.0, which every environment loads, asks for
these as it is loaded, and otherwise raises SIGILL. A Raspberry Pi 5 has them; a Pi 3 or 4 has not."""


@functools.cache
def runs_here(machine: str | None = None, cpuinfo: Path = CPUINFO) -> bool:
    """Whether this processor survives it; the same package's Interpreter runs on any.

    Args:
        machine: as the kernel names it; None: this one.
        cpuinfo: file like /proc/cpuinfo.
    """
    if (machine or platform.machine()) != "aarch64":
        return True
    if missing := _ARM_NEEDS - instruction_sets(cpuinfo.read_text()):
        _log.info("%s keeps and shares no packed weights on this processor: no %s", INTERPRETER, " ".join(missing))
    return not missing


class CompiledSession(Closing):
    """Implements `Session`."""

    interpreter = INTERPRETER

    def __init__(self, artifact: Path, threads: int, entry: str | None, path: str) -> None:
        """Compile all entries, to run one; `path`: of a file of packed weights, which is read, or filled if empty."""
        self.version = metadata.version(INTERPRETER)
        self.cache: CacheUse = "off"
        module, environment = load()
        options = module.Options(
            hardware_accelerators=module.HardwareAccelerator.CPU,
            cpu_options=module.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=path),
        )
        try:
            with chatter():
                model = module.CompiledModel.from_file(str(artifact), environment=environment, options=options)
            signatures = model.get_signature_list()
            entry = choose_entry(signatures, entry, artifact)
            if entry is None:
                raise RuntimeFault(f"{artifact} has no signature")
            self.entries = list(signatures)
            self._bind(model, entry, signatures[entry])
        except (ValueError, RuntimeError, KeyError) as error:
            raise RuntimeFault(f"{INTERPRETER} {self.version}: {error}") from error

    def _bind(self, model: Any, entry: str, names: dict[str, list[str]]) -> None:  # noqa: ANN401  # it has no types
        index = model.get_signature_index(entry)
        inputs, outputs = model.create_input_buffers(index), model.create_output_buffers(index)
        given = _in_order(model.get_input_tensor_details(entry), names["inputs"], inputs)
        answers = _in_order(model.get_output_tensor_details(entry), names["outputs"], outputs)
        self.signature = Signature(inputs=tuple(spec for spec, _ in given), outputs=tuple(spec for spec, _ in answers))
        self._wanted = [(np.dtype(spec.dtype), _sizes(spec)) for spec, _ in given]
        self._write = [buffer.write for _, buffer in given]
        self._read = [_reader(spec, buffer) for spec, buffer in answers]
        self._call: Any = functools.partial(model.run_by_index, index, inputs, outputs)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        if self._call is None:
            raise CallerError("the session is closed; open it again")
        arrays = inputs if exactly(inputs, self._wanted) else fit(inputs, self.signature)
        try:
            for write, array in zip(self._write, arrays):  # noqa: B905  # counted above; strict costs time
                write(array)
            self._call()
            return [read(count, dtype).reshape(shape) for read, count, dtype, shape in self._read]
        except (ValueError, RuntimeError) as error:
            raise RuntimeFault(f"{INTERPRETER} {self.version}: {error}") from error

    def close(self) -> None:
        """See `Session.close`."""
        self._call = None
        self._write = self._read = []


def open_session(artifact: Path, *, threads: int, entry: str | None, cache: Cache | None) -> Session | None:
    """A session that packs each weight once; None: nothing is gained by it, or the artifact is not for it.

    Args:
        artifact: a `.tflite` file without operators of ferryman's own.
        threads: at least 1.
        entry: key of one of its signatures; None: the first.
        cache: where packed weights are kept from one start to the next.

    Raises:
        CallerError: there is no such entry.
    """
    if not runs_here():
        return None
    weights = look_through(artifact, "tflite")
    if not weights.keepable or weights.dynamic:
        return None
    try:
        if cache is not None:
            return _open_kept(artifact, threads, entry, cache, shared=weights.shared)
        if weights.shared:
            session = CompiledSession(artifact, threads, entry, _IN_MEMORY)
            session.cache = "memory"
            return session
    except (OSError, RuntimeFault) as error:
        _log.warning("%s is opened without its packed weights: %s", artifact, error)
    return None


def _open_kept(artifact: Path, threads: int, entry: str | None, cache: Cache, *, shared: bool) -> Session | None:
    version = f"{INTERPRETER} {metadata.version(INTERPRETER)}"
    kept = caches.keep(cache, artifact, version, functools.partial(_pack, artifact, threads), shared=shared)
    if kept is None:
        return None
    try:
        session = CompiledSession(artifact, threads, entry, kept.path)
    finally:
        os.close(kept.descriptor)
    session.cache = kept.use
    if caches.is_of(kept, artifact):
        return session
    session.close()
    _log.warning("%s was changed while it was opened; it is opened again without packed weights", artifact)
    return None


def _pack(artifact: Path, threads: int, path: str) -> bool:
    """Pack the weights of all entries into one file; False: the answers are not the same as without."""
    with CompiledSession(artifact, threads, None, path) as first:
        entries = first.entries
    for entry in entries:
        with (
            TfliteSession(artifact, INTERPRETER, threads, entry) as plain,
            CompiledSession(artifact, threads, entry, path) as packed,
        ):
            if plain.signature != packed.signature or not same_answers(plain, packed):
                return False
    return True


@functools.cache
def load() -> tuple[ModuleType, Any]:
    """The package's module and one environment for all sessions; and what they need, brought into the process.

    Raises:
        DeviceError: the package is not installed, or does not load.
    """
    try:
        module = importlib.import_module("ai_edge_litert.compiled_model")
    except ImportError as error:
        raise DeviceError(f"{INTERPRETER} cannot be loaded on this device: {error}") from error
    options = module.EnvironmentOptions(
        runtime_path=str(Path(str(module.__file__)).parent),
        compiler_plugin_path=_NOWHERE,
        dispatch_library_path=_NOWHERE,
    )
    with chatter():
        environment = module.Environment.create(options=options)
        first = module.TensorBuffer.create_from_host_memory(np.zeros(1, np.float32))
        first.write(np.zeros(1, np.float32))
        first.destroy()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(environment))  # to the end: taking it down says no more than that it is
    return module, environment


def _in_order(
    details: dict[str, dict[str, Any]], names: Sequence[str], buffers: Sequence[Any]
) -> list[tuple[TensorSpec, Any]]:
    """Specs and buffers in the order of the model's call."""
    found = []
    for name, buffer in sorted(zip(names, buffers, strict=True), key=lambda pair: natural(pair[0])):
        dtype = str(details[name]["dtype"])
        shape = tuple(int(size) for size in details[name]["shape"])
        if dtype not in _DTYPES or 0 in shape:
            raise ValueError(f"tensor {name} of {dtype} and shape {list(shape)}")
        found.append((TensorSpec(name=name, dtype=dtype, shape=shape), buffer))
    return found


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if isinstance(size, int))  # no dimension varies


def _reader(spec: TensorSpec, buffer: Any) -> tuple[Any, int, Any, tuple[int, ...]]:  # noqa: ANN401
    """How to read a buffer, elements, their type, and the shape."""
    shape = _sizes(spec)
    return buffer.read, math.prod(shape), np.dtype(spec.dtype).type, shape


@contextlib.contextmanager
def chatter() -> Iterator[None]:
    """Have lines that LiteRT writes to file descriptor 2 logged, and others' go where they should, a little later."""
    with _quiet:
        sys.stderr.flush()
        saved, caught = os.dup(2), os.memfd_create("litert", os.MFD_CLOEXEC)
        os.dup2(caught, 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            text = os.pread(caught, os.fstat(caught).st_size, 0)
            for line in text.splitlines(keepends=True):
                if _CHATTER.match(line):
                    _log.info("%s", line.decode(errors="replace").strip())
                else:
                    os.write(saved, line)
            os.close(saved)
            os.close(caught)

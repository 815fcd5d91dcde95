"""What may be done with the weights that XNNPACK packs of an artifact, and checksums of what was kept of them.

XNNPACK lays weights out anew before it uses them. Both runtimes can keep what comes of that, so that a weight which
several layers share is packed once; native/weights/weights.h says of which artifacts that gives wrong answers.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.native_library import native_library

_LIBRARY = "libferryman_weights.so"
_PACKED, _SHARED, _UNSAFE, _DYNAMIC, _UNKNOWN = (1 << bit for bit in range(5))

log = logging.getLogger("ferryman.cache")
log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Weights:
    """Of one artifact."""

    keepable: bool
    """XNNPACK packs some, and packing each once is safe."""
    shared: bool
    """Several layers use one weight."""
    dynamic: bool
    """Some dimension of some tensor varies (told of a `.tflite` alone)."""


UNKNOWN = Weights(keepable=False, shared=False, dynamic=False)


@functools.cache
def _library() -> ctypes.CDLL | None:
    path = native_library(_LIBRARY)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        log.warning("%s does not load, so no packed weights are kept: %s", path, error)
        return None
    library.ferryman_weights_checksum.restype = library.ferryman_weights_processor.restype = ctypes.c_uint64
    for name in ("pte", "tflite", "checksum"):
        getattr(library, f"ferryman_weights_{name}").argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return library


def look_through(artifact: Path, runtime: RuntimeName) -> Weights:
    """How an artifact's layers use its weights; UNKNOWN for what is no artifact of `runtime`."""
    library = _library()
    if library is None:
        return UNKNOWN
    look = library.ferryman_weights_pte if runtime == "executorch" else library.ferryman_weights_tflite
    try:
        with artifact.open("rb") as file, _mapped(file.fileno()) as (address, size):
            found = look(address, size)
    except (OSError, ValueError):  # a file that cannot be read, or is empty
        return UNKNOWN
    if found & _UNKNOWN:
        return UNKNOWN
    return Weights(
        keepable=bool(found & _PACKED and not found & _UNSAFE),
        shared=bool(found & _SHARED),
        dynamic=bool(found & _DYNAMIC),
    )


def checksum(descriptor: int) -> int | None:
    """64 bits that change with the file's; None: the native library is not installed.

    Raises:
        OSError: it cannot be mapped.
        ValueError: it is empty.
    """
    library = _library()
    if library is None:
        return None
    with _mapped(descriptor, populate=True) as (address, size):
        return int(library.ferryman_weights_checksum(address, size))


def processor() -> int:
    """64 bits that change with what the processor says that it can do; 0: the native library is not installed.

    The kernel's word may be another's: a program that qemu runs reads the `/proc/cpuinfo` of the machine beneath.
    """
    library = _library()
    return 0 if library is None else int(library.ferryman_weights_processor())


@contextmanager
def _mapped(descriptor: int, *, populate: bool = False) -> Iterator[tuple[int, int]]:
    """Address and size of a file's bytes."""
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
    with mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        try:
            yield int(view.ctypes.data), view.size
        finally:
            del view  # a map with views on it cannot be closed

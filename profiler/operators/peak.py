"""What this device does at most, measured in less than a second: the roof over the operators."""

from __future__ import annotations

import ctypes
from pathlib import Path

import msgspec
import numpy as np

from ferryman.profiler.busy import Busy
from ferryman.runtime import kernels
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.operators import Peak
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.cpu import CPUINFO, instruction_sets

_SECONDS = 0.12
"""Of each of the four."""
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST_BYTES, _MOST_BYTES = 16 << 20, 256 << 20
_NEAR_BYTES = 16 << 10
"""Stays in the first cache."""
_UNIT = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BEYOND_FLOATS = {"avx2": "avx512f", "x86_64": "avx2", "neon": "sme2", "neon_dot": "sme2"}
_BEYOND_INT8 = {
    "avx512": ("amx_int8",),
    "avx2": ("avx512f", "avx_vnni"),
    "x86_64": ("avx2",),
    "neon_dot": ("i8mm",),
    "neon": ("asimddp", "i8mm"),
}
"""Kernels in use -> instructions with which the interpreters' own might be faster than what is measured with them."""


def measure_peak() -> Peak | Unavailable:
    """Multiply-adds and bytes a second of one thread, with ferryman's kernels; Unavailable where others may do more."""
    try:
        library, isa = kernels.load(), kernels.isa()
        has = instruction_sets(CPUINFO.read_text())
    except (DeviceError, CallerError, OSError) as error:
        return Unavailable(reason=str(error))
    if isa == "scalar":
        return Unavailable(reason="the kernels are forced to use no vectors, which interpreters do")
    if (more := _BEYOND_FLOATS.get(isa)) in has:
        return Unavailable(reason=f"interpreters may use {more} of this processor, and what is measured uses {isa}")
    for name in ("floats", "int8"):
        function = getattr(library, f"ferryman_peak_{name}")
        function.restype, function.argtypes = ctypes.c_double, (ctypes.c_double,)
    library.ferryman_peak_read.restype = ctypes.c_double
    library.ferryman_peak_read.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_double)
    busy = Busy()
    beyond = [name for name in _BEYOND_INT8[isa] if name in has]
    found = Peak(
        gmacs_per_s=library.ferryman_peak_floats(_SECONDS) / 1e9,
        int8_gmacs_per_s=Unavailable(reason=f"interpreters may use {beyond[0]}, and what is measured uses {isa}")
        if beyond
        else library.ferryman_peak_int8(_SECONDS) / 1e9,
        gbytes_per_s=_read(library, _far_bytes(), 1) / 1e9,
        cache_gbytes_per_s=_read(library, _NEAR_BYTES, 1000) / 1e9,
    )
    return msgspec.structs.replace(found, busy=busy.share())


def _read(library: ctypes.CDLL, size: int, times: int) -> float:
    words = np.ones(size // 4, np.uint32)
    return float(library.ferryman_peak_read(words.ctypes.data, words.size, times, _SECONDS))


def _far_bytes() -> int:
    """More than the caches hold, so that most of it comes from memory."""
    caches = []
    for file in _CACHES.glob("index*/size"):
        text = file.read_text().strip()
        caches.append(int(text.rstrip("KMG")) * _UNIT.get(text[-1:], 1))
    return min(max(4 * max(caches, default=0), _LEAST_BYTES), _MOST_BYTES)

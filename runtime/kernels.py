"""ferryman's own operators: which library is here, and which instruction set it uses.

The operators run inside the interpreters: ExecuTorch finds them registered, TFLite through an external delegate.
"""

from __future__ import annotations

import ctypes
import functools
import os

from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.native_library import native_library

VERSION = 4
"""Of the operators and the layout of their weights; a library runs artifacts made for its version or an older one."""
ISA = "FERRYMAN_KERNELS_ISA"
"""Environment variable: forces one of `isas()`."""
_LIBRARY = "libferryman_kernels.so"


@functools.cache
def load() -> ctypes.CDLL:
    """The library; its functions are those of native/kernels/kernels.h.

    Raises:
        DeviceError: it is not installed, does not load, or is of another version than this Python code.
        CallerError: FERRYMAN_KERNELS_ISA names none that this processor has.
    """
    path = native_library(_LIBRARY)
    if path is None:
        raise DeviceError(f"ferryman's {_LIBRARY} is not installed; install ferryman with pip, which builds it")
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise DeviceError(f"{path} does not load: {error}") from error
    for name in ("ferryman_kernels_isa", "ferryman_kernels_isas", "ferryman_binary_check", "ferryman_binary_run"):
        getattr(library, name).restype = ctypes.c_char_p  # an attribute is kept, an item is made anew
    if (built := library.ferryman_kernels_version()) != VERSION:
        raise DeviceError(f"{path}: expected version {VERSION}, found {built}; install ferryman again")
    there = library.ferryman_kernels_isas().decode().split()
    if (named := os.environ.get(ISA)) and named not in there:
        raise CallerError(f"{ISA} is {named!r}; this processor has {', '.join(there)}")
    return library


def version() -> int | None:
    """Version of the library; None when it is not installed."""
    return VERSION if native_library(_LIBRARY) else None


def isa() -> str:
    """The instruction set in use: avx512, avx2, x86_64, neon_dot, neon or scalar."""
    return str(load().ferryman_kernels_isa().decode())


def isas() -> tuple[str, ...]:
    """Those built in that this processor has, best first."""
    return tuple(load().ferryman_kernels_isas().decode().split())

"""ExecuTorch sessions, over ferryman's own native library: no torch, no executorch package.

Inputs and outputs have no names in a `.pte`; they are called `input_0`, `output_0` and so on. Of a dynamic tensor a
`.pte` keeps only upper bounds, for the tensor as a whole, so each of its dimensions reads `1..upper bound`; the
package's manifest knows which ones vary.

Threads: a session with one thread works in the caller's thread alone. Sessions with more share ExecuTorch's one pool,
so all of them that are open in a process have to ask for the same number. Programs that the `executorch` package loaded
in the same process use that pool as well, and are not counted: do not change its size under them.

ExecuTorch verifies the structure of a file, which catches truncation and most damage; some altered bytes crash it.
Open only files whose hash is known, or in a process of their own.

Weights: each use of a weight is packed for itself, unless several layers share one or a cache is given; then all are
packed once, into a file that the session maps. ExecuTorch takes locks on that file, and holds them: whoever comes then
would pack anew and, once the lock is gone, empty the file under those who have it mapped. So files of a cache are
opened by one session at a time, and the lock is let go before the next.

ExecuTorch's log lines arrive on the logger `ferryman.executorch`, after each call that produced any.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ferryman.runtime import cache as caches
from ferryman.runtime import kernels
from ferryman.runtime.cache import Cache, CacheUse, Kept
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeFault
from ferryman.runtime.contracts.tensor import Array, DynamicDim, Signature, TensorSpec
from ferryman.runtime.native_library import native_library
from ferryman.runtime.session import fit
from ferryman.runtime.sessions.probe import same_answers
from ferryman.runtime.weights import look_through

VERSION = "1.5.1"
_LIBRARY = "libferryman_executorch.so"
_LEVELS = {"D": logging.DEBUG, "I": logging.INFO, "E": logging.ERROR, "F": logging.CRITICAL}
# ExecuTorch's ScalarType numbers.
_DTYPES = dict(enumerate(("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"))) | {11: "bool"}
_CALLERS_FAULT = frozenset((-2, -5))  # FERRYMAN_ET_THREADS_BUSY, FERRYMAN_ET_NO_ENTRY

_locking = threading.Lock()
"""Held while a lock is looked for and while a session is closed: a file number must not become another's meanwhile."""

_log = logging.getLogger("ferryman.executorch")
_log.addHandler(logging.NullHandler())  # errors reach the caller as exceptions; without this they also go to stderr


class _Tensor(ctypes.Structure):
    """ferryman_et_tensor of native/executorch/session.h."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dynamic", ctypes.c_int32),
        ("sizes", ctypes.c_int32 * 16),
        ("data", ctypes.c_void_p),
    )


class _Native:
    """The native library, loaded."""

    def __init__(self, path: Path) -> None:
        self._library = library = ctypes.CDLL(os.fspath(path))
        pointer, size, tensors = ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.POINTER(_Tensor))
        self.version = self._function("version", ctypes.c_char_p)
        self.error = self._function("error", ctypes.c_char_p)
        text, number = ctypes.c_char_p, ctypes.c_int32
        self.open = self._function("open", ctypes.c_int, text, text, text, number, number, ctypes.POINTER(pointer))
        self.entries = self._function("entries", ctypes.c_int, text, ctypes.POINTER(text))
        self.inputs = self._function("inputs", size, pointer, tensors)
        self.outputs = self._function("outputs", size, pointer, tensors)
        self.run = self._function("run", ctypes.c_int, pointer, pointer, pointer)
        self.etdump = self._function("etdump", ctypes.c_int, pointer, ctypes.POINTER(pointer), ctypes.POINTER(size))
        self.planned_bytes = self._function("planned_bytes", ctypes.c_int64, pointer)
        self.close = self._function("close", None, pointer)
        self._log_take = self._function("log_take", ctypes.c_int, ctypes.c_char_p, size)
        self.log_pending = ctypes.c_int32.in_dll(library, "ferryman_et_log_pending")

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:  # noqa: ANN401  # ctypes has no types for these
        function = self._library[f"ferryman_et_{name}"]
        function.restype = result
        function.argtypes = arguments
        return function

    def flush_log(self) -> None:
        """Hand waiting log lines to `logging`."""
        line = ctypes.create_string_buffer(2048)
        while level := self._log_take(line, len(line)):
            _log.log(_LEVELS.get(chr(level), logging.INFO), "%s", line.value.decode(errors="replace"))

    def check(self, code: int) -> None:
        """Raise what the last call of this thread reported."""
        if self.log_pending.value:
            self.flush_log()
        if code:
            message = self.error().decode(errors="replace")
            raise CallerError(message) if code in _CALLERS_FAULT else RuntimeFault(message)


@functools.cache
def _native() -> _Native:
    path = native_library(_LIBRARY)
    if path is None:
        raise DeviceError(f"ferryman's {_LIBRARY} is not installed; install ferryman with pip, which builds it")
    try:
        native = _Native(path)
    except OSError as error:
        raise DeviceError(f"{path} does not load: {error}") from error
    built = native.version().decode()
    if built != VERSION:
        raise DeviceError(f"{path}: expected ExecuTorch {VERSION}, found {built}; install ferryman again")
    kernels.load()  # it is in the process by now; this checks what the environment asks of it
    return native


def load() -> None:
    """Load the native library ahead of the first session.

    Raises:
        DeviceError: it is not installed, or does not load.
        CallerError: FERRYMAN_KERNELS_ISA names none that this processor has.
    """
    _native()


def version() -> str | None:
    """Version of ExecuTorch; None when the native library is not installed."""
    return VERSION if native_library(_LIBRARY) else None


def open_session(
    artifact: Path, *, threads: int, entry: str | None = None, cache: Cache | None = None, etdump: bool = False
) -> ExecutorchSession:
    """Load a `.pte` file; it has to stay in place while the session is open (it is mapped).

    Args:
        artifact: the file.
        threads: at least 1; see the module's note on sharing.
        entry: the method; None: the only one, and of several `forward`.
        cache: where packed weights are kept from one start to the next.
        etdump: record every run for `ExecutorchSession.etdump`, which keeps memory until it is called.

    Raises:
        CallerError: threads < 1, other sessions hold the thread pool at another size, there is no such entry, or
            FERRYMAN_KERNELS_ISA names an instruction set that this processor has not.
        DeviceError: the native library is not installed.
        RuntimeFault: ExecuTorch does not take the file; the message holds its own log lines.
    """
    if threads < 1:
        raise CallerError(f"threads must be at least 1, found {threads}")
    native = _native()
    weights = look_through(artifact, "executorch")
    how = functools.partial(ExecutorchSession, native, artifact, threads, entry=entry, etdump=etdump)
    if cache is not None and weights.keepable:
        pack = functools.partial(_pack, artifact, threads)
        kept = caches.keep(cache, artifact, f"executorch {VERSION}", pack, shared=weights.shared)
        if kept is None:
            return how()
        if (session := _open_kept(how, kept, cache, artifact)) is not None:
            return session
    if weights.keepable and weights.shared:
        return _open_with(how, caches.memory())
    return how()


def _pack(artifact: Path, threads: int, path: str) -> bool:
    """Pack the weights of all entries into one file; False: the answers are not the same as without."""
    native = _native()
    names = ctypes.c_char_p()
    native.check(native.entries(os.fsencode(artifact), ctypes.byref(names)))
    with contextlib.ExitStack() as packed:  # until all are open: what none uses any more is unmapped
        for entry in (names.value or b"").decode().splitlines():
            how = functools.partial(ExecutorchSession, native, artifact, threads, entry=entry)
            with how() as plain:
                if not same_answers(plain, packed.enter_context(how(path=path))):
                    return False
    return True


def _open_kept(
    how: Callable[..., ExecutorchSession], kept: Kept, cache: Cache, artifact: Path
) -> ExecutorchSession | None:
    """A session with packed weights from a file that others use too; None: the file could not be had."""
    with contextlib.ExitStack() as stack:
        try:
            if kept.use != "memory":
                stack.enter_context(caches.alone_in(cache.folder))
        except OSError as error:
            os.close(kept.descriptor)
            _log.warning("%s is opened without its packed weights: %s: %s", artifact, cache.folder, error)
            return None
        session = _open_with(how, kept)
        _let_go(kept.descriptor)
    if not caches.is_of(kept, artifact):
        session.close()
        _log.warning("%s was changed while it was opened; it is opened again without packed weights", artifact)
        return None
    return session


def _open_with(how: Callable[..., ExecutorchSession], kept: Kept) -> ExecutorchSession:
    """A session that owns `kept`."""
    try:
        session = how(path=kept.path)
    except BaseException:
        os.close(kept.descriptor)
        raise
    session.hold(kept)
    return session


def _let_go(descriptor: int) -> None:
    """Release the lock that ExecuTorch holds on a file, by its own descriptor of it."""
    ours = os.fstat(descriptor)
    with _locking:
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                found = os.fstat(int(entry.name))
                if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                    fcntl.flock(int(entry.name), fcntl.LOCK_UN)


def _spec(tensor: _Tensor, name: str) -> TensorSpec:
    if tensor.dtype not in _DTYPES:
        raise RuntimeFault(
            f"{name}: expected one of {', '.join(_DTYPES.values())}, found ExecuTorch's dtype number {tensor.dtype}"
        )
    sizes = tensor.sizes[: tensor.ndim]
    shape = [
        DynamicDim(symbol=f"{name}_{axis}", min=1, max=size) if tensor.dynamic and size > 1 else size
        for axis, size in enumerate(sizes)
    ]
    return TensorSpec(name=name, dtype=_DTYPES[tensor.dtype], shape=tuple(shape))


class _Port:
    """One input or output: its description and a view of its memory at the upper bounds."""

    def __init__(self, tensor: _Tensor, name: str) -> None:
        self._tensor = tensor
        self._address: int | None = None
        self.spec = _spec(tensor, name)
        self.dtype = np.dtype(self.spec.dtype)
        self.bounds = tuple(tensor.sizes[: tensor.ndim])
        self.dynamic = bool(tensor.dynamic)
        self.view: Array = np.empty(self.bounds if math.prod(self.bounds) == 0 else 0, self.dtype)
        self.follow()

    def follow(self) -> Array:
        """The view, after a look at where the memory is: a branch in the model may move an output."""
        address = self._tensor.data
        if address != self._address and address is not None:
            self._address = address
            memory = (ctypes.c_char * (math.prod(self.bounds) * self.dtype.itemsize)).from_address(address)
            self.view = np.frombuffer(memoryview(memory), self.dtype).reshape(self.bounds)
        return self.view

    def part(self, shape: tuple[int, ...]) -> Array:
        """The memory of a tensor of `shape` within the bounds."""
        return self.view.reshape(-1)[: math.prod(shape)].reshape(shape)


class ExecutorchSession(Closing):
    """A loaded `.pte`; used by one thread at a time."""

    interpreter = "executorch"
    version = VERSION

    def __init__(
        self,
        native: _Native,
        artifact: Path,
        threads: int,
        *,
        entry: str | None = None,
        path: str | None = None,
        etdump: bool = False,
    ) -> None:
        """See `open_session`; `path`: of a file of packed weights, which stays open as long as the session."""
        self._native = native
        self._handle: int | None = None
        self._kept: Kept | None = None
        self.cache: CacheUse = "off"
        handle = ctypes.c_void_p()
        name, kept = (None if text is None else text.encode() for text in (entry, path))
        try:
            native.check(native.open(os.fsencode(artifact), name, kept, threads, int(etdump), ctypes.byref(handle)))
            self._handle = handle.value
            self._inputs = self._ports(native.inputs, "input")
            self._outputs = self._ports(native.outputs, "output")
        except (CallerError, RuntimeFault) as error:
            self.close()
            raise type(error)(f"{artifact}: {error}") from None
        self.signature = Signature(
            inputs=tuple(port.spec for port in self._inputs), outputs=tuple(port.spec for port in self._outputs)
        )
        self._input_sizes = self._size_table(self._inputs)
        self._output_sizes = self._size_table(self._outputs)
        # Bound once: converting the arguments anew is a good part of a small model's call.
        self._call = functools.partial(native.run, handle, self._input_sizes, self._output_sizes)

    def hold(self, kept: Kept) -> None:
        """Own the file of packed weights that the session was opened with."""
        self._kept = kept
        self.cache = kept.use

    def _ports(self, count_of: Any, kind: str) -> list[_Port]:  # noqa: ANN401  # a ctypes function
        tensors = ctypes.POINTER(_Tensor)()
        count = count_of(self._handle, ctypes.byref(tensors))
        return [_Port(tensors[i], f"{kind}_{i}") for i in range(count)]

    @staticmethod
    def _size_table(ports: list[_Port]) -> ctypes.Array[ctypes.c_int32] | None:
        """Room for the dimensions of all `ports`; None when they are fixed."""
        if not any(port.dynamic for port in ports):
            return None
        return (ctypes.c_int32 * sum(len(port.bounds) for port in ports))()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference; the arrays returned are the caller's own.

        Raises:
            CallerError: the session is closed, or count, dtype or shape is not the signature's.
            RuntimeFault: ExecuTorch failed; the message holds its own log lines.
        """
        if self._handle is None:
            raise CallerError("the session is closed; open it again")
        if not self._fits(inputs):
            inputs = fit(inputs, self.signature)
        if self._input_sizes is None:
            for port, array in zip(self._inputs, inputs):  # noqa: B905  # counted above; strict costs time
                port.view[...] = array
        else:
            self._input_sizes[:] = [size for array in inputs for size in array.shape]
            for port, array in zip(self._inputs, inputs, strict=True):
                port.part(array.shape)[...] = array
        code = self._call()
        if code or self._native.log_pending.value:
            self._native.check(code)
        if self._output_sizes is None:
            return [port.follow().copy() for port in self._outputs]
        return self._dynamic_outputs(self._output_sizes)

    def _fits(self, inputs: Sequence[Array]) -> bool:
        """Whether `inputs` are plainly at the bounds: the common case, told in less time than `fit` takes."""
        if len(inputs) != len(self._inputs):
            return False
        for port, array in zip(self._inputs, inputs):  # noqa: B905  # counted above; strict costs time
            if type(array) is not np.ndarray or array.dtype is not port.dtype or array.shape != port.bounds:
                return False
        return True

    def _dynamic_outputs(self, sizes: ctypes.Array[ctypes.c_int32]) -> list[Array]:
        outputs = []
        start = 0
        for port in self._outputs:
            shape = tuple(sizes[start : start + len(port.bounds)])
            start += len(shape)
            port.follow()
            outputs.append(port.part(shape).copy())
        return outputs

    def etdump(self) -> bytes:
        """ExecuTorch's profile of the runs since the last call, as its Inspector reads it.

        Raises:
            CallerError: the session is closed.
            RuntimeFault: it was opened without etdump, or there was no run.
        """
        if self._handle is None:
            raise CallerError("the session is closed; open it again")
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._native.check(self._native.etdump(self._handle, ctypes.byref(data), ctypes.byref(size)))
        return ctypes.string_at(data.value or 0, size.value)

    def planned_bytes(self) -> int:
        """Memory that the artifact lays out for its tensors; what delegates take for theirs is not in it.

        Raises:
            CallerError: the session is closed.
        """
        if self._handle is None:
            raise CallerError("the session is closed; open it again")
        return int(self._native.planned_bytes(self._handle))

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._inputs = self._outputs = []
            with _locking if self._kept else contextlib.nullcontext():
                self._native.close(handle)
        if self._kept is not None:
            kept, self._kept = self._kept, None
            os.close(kept.descriptor)

    def __del__(self) -> None:
        self.close()

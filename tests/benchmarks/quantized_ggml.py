"""llama.cpp's ggml, built for this processor from the source archive of llama-cpp-python, through ctypes.

Only what a product with Q4_0 weights needs is here; the functions are those of its public headers.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.frame import CannotRun, progress
from tests.support.interpreters import ROOT

PACKAGE = "llama-cpp-python==0.3.36"
BLOCK = 32
"""Inputs that share a scale."""
_SOURCES = "vendor/llama.cpp/ggml"
_PROJECT = "cmake_minimum_required(VERSION 3.14)\nproject(rival C CXX)\nadd_subdirectory(ggml)\n"
# As llama.cpp builds it by default, but for OpenMP: one thread needs none.
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    "GGML_LLAMAFILE": "ON",
    "GGML_CCACHE": "OFF",
    "GGML_OPENMP": "OFF",
}
_LIBRARY = "libggml-cpu.so"
_F32, _Q4_0 = 0, 2  # of enum ggml_type
_CONTEXT_BYTES = 1 << 20  # of descriptions; data lies in buffers
_POOL_PARAMETERS_BYTES = 4096  # more than ggml_threadpool_params takes
_POINTER, _INT, _INT64, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t


class _Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # what each answers, then what it takes
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, _POINTER, _POINTER),
    "ggml_backend_buft_name": (ctypes.c_char_p, _POINTER),
    "ggml_backend_cpu_buffer_type": (_POINTER,),
    "ggml_backend_cpu_init": (_POINTER,),
    "ggml_backend_cpu_reg": (_POINTER,),
    "ggml_backend_cpu_set_n_threads": (None, _POINTER, _INT),
    "ggml_backend_cpu_set_threadpool": (None, _POINTER, _POINTER),
    "ggml_backend_graph_plan_compute": (_INT, _POINTER, _POINTER),
    "ggml_backend_graph_plan_create": (_POINTER, _POINTER, _POINTER),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, _POINTER, _POINTER),
    "ggml_backend_reg_dev_get": (_POINTER, _POINTER, _SIZE),
    "ggml_backend_reg_get_proc_address": (_POINTER, _POINTER, ctypes.c_char_p),
    "ggml_backend_tensor_get": (None, _POINTER, _POINTER, _SIZE, _SIZE),
    "ggml_backend_tensor_set": (None, _POINTER, _POINTER, _SIZE, _SIZE),
    "ggml_build_forward_expand": (None, _POINTER, _POINTER),
    "ggml_init": (_POINTER, _Parameters),
    "ggml_mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_new_graph": (_POINTER, _POINTER),
    "ggml_new_tensor_2d": (_POINTER, _POINTER, _INT, _INT64, _INT64),
    "ggml_quantize_chunk": (_SIZE, _INT, _POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER),
    "ggml_threadpool_new": (_POINTER, _POINTER),
    "ggml_threadpool_params_init": (None, _POINTER, _INT),
}
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("low_then_high", "u1", BLOCK // 2)])


def load() -> ctypes.CDLL:
    """The library, built at the first call on this machine.

    Raises:
        CannotRun: its sources cannot be had, or do not build.
    """
    folder = ROOT / ".cache" / PACKAGE
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".bench-") as scratch:
            built = _build(Path(scratch))
            folder.parent.mkdir(exist_ok=True)
            built.rename(folder)
    library = ctypes.CDLL(str(folder / _LIBRARY))
    for name, (answer, *takes) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = answer, takes
    return library


def _build(scratch: Path) -> Path:
    progress(f"{PACKAGE}: fetching its sources")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _must("fetched", [*pip, "--no-binary", ":all:", "--dest", str(scratch), PACKAGE])
    _unpack(next(scratch.glob("*.tar.gz")), scratch / "ggml")
    (scratch / "CMakeLists.txt").write_text(_PROJECT)
    progress(f"{PACKAGE}: building ggml (a minute or two)")
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    _must("configured", ["cmake", "-S", str(scratch), "-B", str(scratch / "build"), *options])
    _must("built", ["cmake", "--build", str(scratch / "build"), "--parallel", "1", "--target", "ggml-cpu"])
    built = scratch / "built"
    built.mkdir()
    for library in (scratch / "build" / "ggml" / "src").glob("*.so*"):
        shutil.copy(library, built, follow_symlinks=False)
    return built


def _unpack(archive: Path, folder: Path) -> None:
    """ggml alone: the archive holds a few hundred MB of other things."""
    with tarfile.open(archive) as files:
        for member in files:
            _, found, name = member.name.partition(f"/{_SOURCES}/")
            if found:
                files.extract(member.replace(name=name), folder, filter="data")


def _must(done: str, command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise CannotRun(f"{PACKAGE} cannot be {done}: there is no {error.filename}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().rpartition("\n")[2]
        raise CannotRun(f"{PACKAGE} cannot be {done}: {said[-200:]}") from error


def quantized(library: ctypes.CDLL, weight: np.ndarray) -> np.ndarray:
    """Q4_0 of float32[out, in]: records of `scale` and `low_then_high`, [out, in / BLOCK]."""
    rows, depth = weight.shape
    blocks = np.zeros((rows, depth // BLOCK), _BLOCK_TYPE)
    size = library.ggml_quantize_chunk(_Q4_0, weight.ctypes.data, blocks.ctypes.data, 0, rows, depth, None)
    if size != blocks.nbytes:
        raise RuntimeError(f"Q4_0 of {rows}x{depth}: expected {blocks.nbytes} bytes, found {size}")
    return blocks


def stored(blocks: np.ndarray) -> np.ndarray:
    """uint8[out, in], 0 to 15, where 8 stands for 0: the low halves of a block's bytes are its first inputs."""
    halves = blocks["low_then_high"]
    return np.concatenate([halves & 15, halves >> 4], axis=-1).reshape(len(blocks), -1)


def products(library: ctypes.CDLL, blocks: np.ndarray) -> dict[str, Product]:
    """Every way that the library has of multiplying by them, by the name of the memory that decides it."""
    made = {}
    for kind in _buffer_types(library):
        with suppress(NotImplementedError):
            made[library.ggml_backend_buft_name(kind).decode()] = Product(library, blocks, kind)
    return made


def _buffer_types(library: ctypes.CDLL) -> list[int]:
    """Kinds of memory that weights can lie in: the plain one, and those that lay them out anew."""
    kinds = [library.ggml_backend_cpu_buffer_type()]
    cpu = library.ggml_backend_cpu_reg()
    if address := library.ggml_backend_reg_get_proc_address(cpu, b"ggml_backend_dev_get_extra_bufts"):
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)
        there = extra(library.ggml_backend_reg_dev_get(cpu, 0))
        kinds += itertools.takewhile(bool, (there[index] for index in itertools.count()))
    return kinds


class Product:
    """y = weights @ x on one thread, planned once; a call quantizes x and multiplies."""

    def __init__(self, library: ctypes.CDLL, blocks: np.ndarray, buffer_type: int) -> None:
        """Weights are copied to memory of this kind.

        Raises:
            NotImplementedError: it does not take such weights on this processor.
        """
        self._library = library
        out, depth = blocks.shape[0], blocks.shape[1] * BLOCK
        self._shape = (1, out)
        parameters = _Parameters(_CONTEXT_BYTES, None, no_alloc=True)
        held, context = library.ggml_init(parameters), library.ggml_init(parameters)
        weights = library.ggml_new_tensor_2d(held, _Q4_0, depth, out)
        self._x = library.ggml_new_tensor_2d(context, _F32, depth, 1)
        self._y = library.ggml_mul_mat(context, weights, self._x)
        for tensors, kind in ((held, buffer_type), (context, library.ggml_backend_cpu_buffer_type())):
            if not library.ggml_backend_alloc_ctx_tensors_from_buft(tensors, kind):
                raise MemoryError
        device = library.ggml_backend_reg_dev_get(library.ggml_backend_cpu_reg(), 0)
        if not library.ggml_backend_dev_supports_op(device, self._y):
            raise NotImplementedError
        library.ggml_backend_tensor_set(weights, blocks.ctypes.data, 0, blocks.nbytes)
        graph = library.ggml_new_graph(context)
        library.ggml_build_forward_expand(graph, self._y)
        self._backend = _one_thread(library)
        self._plan = library.ggml_backend_graph_plan_create(self._backend, graph)

    def put(self, x: np.ndarray) -> None:
        """The input, float32[1, in]."""
        self._library.ggml_backend_tensor_set(self._x, x.ctypes.data, 0, x.nbytes)

    def run(self) -> None:
        """Compute."""
        if status := self._library.ggml_backend_graph_plan_compute(self._backend, self._plan):
            raise RuntimeError(f"ggml ends with status {status}")

    def get(self) -> np.ndarray:
        """The output, float32[1, out]."""
        y = np.full(self._shape, np.nan, np.float32)
        self._library.ggml_backend_tensor_get(self._y, y.ctypes.data, 0, y.nbytes)
        return y


def _one_thread(library: ctypes.CDLL) -> int:
    """The processor, with a pool that is kept from call to call."""
    backend = library.ggml_backend_cpu_init()
    parameters = ctypes.create_string_buffer(_POOL_PARAMETERS_BYTES)
    library.ggml_threadpool_params_init(parameters, 1)
    library.ggml_backend_cpu_set_n_threads(backend, 1)
    library.ggml_backend_cpu_set_threadpool(backend, library.ggml_threadpool_new(parameters))
    return int(backend)

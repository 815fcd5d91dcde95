"""Golden vectors on a phone: run there by the native runner, compared here as on every device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from ferryman.devices.fleet.phone.runner import Output, Profiled, Runner
from ferryman.devices.fleet.phone.store import PhoneStore
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import DTYPES, Array
from ferryman.runtime.golden import Prover
from ferryman.runtime.session import fit

_TIMING = "--warmup-s 0 --runs-min 1 --runs-max 200 --seconds 0.3"
_TIMING_S = 120.0
_OUTPUT_MAX_BYTES = 256 << 20


class Work:
    """A folder on the phone for tensors on their way."""

    def __init__(self, store: PhoneStore) -> None:
        self._store = store
        self._folder = f"{store.incoming}/tensors"
        store.lock.do(f'mkdir -p "$R/{self._folder}"')

    def send(self, arrays: Sequence[Array]) -> list[tuple[str, Sequence[int]]]:
        """Upload inputs; (path, shape) of each, relative to the root."""
        sent: list[tuple[str, Sequence[int]]] = []
        with tempfile.TemporaryDirectory() as folder:
            for index, array in enumerate(arrays):
                file = Path(folder) / f"in{index}"
                file.write_bytes(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
                remote = f"{self._folder}/in{index}"
                self._store.phone.put(file, remote)
                sent.append((remote, array.shape))
        return sent

    def outputs(self, count: int) -> list[str]:
        """Where as many may be written."""
        return [f"{self._folder}/out{index}" for index in range(count)]

    def fetch(self, path: str, output: Output) -> Array:
        """An output that the runner wrote.

        Raises:
            DeviceError: its bytes do not fill its shape.
        """
        phone = self._store.phone
        if output.dtype not in DTYPES:
            raise DeviceError(f"{phone.name}: the runner gave an output of dtype {output.dtype[:40]!r}")
        done = phone.ask(f'cat "$R/{path}"', output_max_bytes=_OUTPUT_MAX_BYTES)
        if done.exit_status:
            raise phone.refusal(done)
        try:
            return np.frombuffer(done.stdout, np.dtype(output.dtype).newbyteorder("<")).reshape(output.shape)
        except ValueError as error:
            raise DeviceError(f"{phone.name}: the runner gave an output that is none: {error}") from error


class PhoneSession:
    """Implements `ProvingSession`: a process on the phone each run."""

    def __init__(self, runner: Runner, work: Work, artifact: str, variant: Variant, version: str) -> None:
        self._runner, self._work, self._artifact, self._variant = runner, work, artifact, variant
        self.version = version
        self.memory_after: Memory | Unavailable = Unavailable(reason="not run yet")

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        signature = self._variant.signature
        paths = self._work.outputs(len(signature.outputs))
        sent = self._work.send(fit(inputs, signature))
        ran = self._runner.run(self._artifact, self._variant.entry, sent, paths)
        if len(ran.outputs) != len(paths):
            raise CallerError(f"expected {len(paths)} outputs, found {len(ran.outputs)}")
        return [self._work.fetch(path, output) for path, output in zip(paths, ran.outputs, strict=True)]

    def shortest_ns(self, inputs: Sequence[Array]) -> int:
        """Of a few calls in one process."""
        sent = self._work.send(fit(inputs, self._variant.signature))
        taken: Profiled = self._runner.profile(
            self._artifact, self._variant.entry, sent, f"--threads 1 {_TIMING}", timeout_s=_TIMING_S
        )
        self.memory_after = taken.memory.phases.after.memory()
        return min((*taken.samples_ns, taken.first_run_ns))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def phone_prover(
    runner: Runner, work: Work, slot: str, usable: Callable[[Variant], Mapping[str, str]]
) -> Prover[PhoneSession]:
    """Proves what is in a folder of the phone.

    Args:
        runner: on the phone.
        work: for tensors.
        slot: folder of the payloads there, relative to the root.
        usable: see `Prover.usable`.
    """

    def open_it(_: Path, variant: Variant, interpreter: str) -> PhoneSession:
        return PhoneSession(runner, work, f"{slot}/{variant.payload}", variant, usable(variant)[interpreter])

    return Prover(usable, open_it, lambda inputs, session: session.shortest_ns(inputs))

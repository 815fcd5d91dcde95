"""A form of a model, or of several, made for each runtime and proven: variants of a package."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from ferryman.converter.backends import BACKENDS
from ferryman.converter.backends.base import Lowered
from ferryman.converter.capture import Captured
from ferryman.converter.forms import Batches, Form
from ferryman.converter.honest import Compared, compare_forms
from ferryman.converter.memory_estimate import activations_peak_bytes
from ferryman.converter.quantize.bit_operations import bit_operations
from ferryman.converter.quiet import quiet
from ferryman.converter.sparse.measure import LayerTime
from ferryman.converter.verify import Interpreter, References, verify, with_program
from ferryman.runtime import kernels
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import LayerForm, Requirements, RuntimeName, Variant, Verification
from ferryman.runtime.contracts.tensor import Signature, pack
from ferryman.runtime.package import SQNR_LEAST_DB

_DEVICE_ROOM_DB = 3.0
"""By how much a rounded form may do worse on a device than here."""
_Times = tuple[LayerTime, ...]
Entry = str | None
"""Which of an artifact's programs; None: it has one."""


_Placed = dict[Entry, tuple[Lowered, tuple[LayerForm, ...]]]


@dataclass(frozen=True)
class Member:
    """A model, alone or one of several that share artifacts."""

    captured: Captured
    batches: Batches
    references: References


@dataclass(frozen=True)
class Made:
    """A proven variant."""

    variant: Variant
    data: bytes
    compared: tuple[Compared, ...] = ()
    layer_times: tuple[LayerTime, ...] = ()


@dataclass(frozen=True)
class Work:
    """What every form is made from."""

    members: dict[Entry, Member]
    base: dict[RuntimeName, dict[Entry, Lowered]]
    """The models in fp32."""
    places: dict[RuntimeName, list[Interpreter]]
    clock: Clock

    def make(self, form: Form) -> Iterator[Made]:
        """One variant a runtime and model."""
        if form.name == "fp32":
            for runtime, base in self.base.items():
                for entry, lowered in base.items():
                    yield Made(self._prove(form, runtime, entry, lowered), lowered.data)
            return
        with self.clock.stage(f"make {form.name}"), quiet():
            written = {entry: _rewrite(form, member) for entry, member in self.members.items()}
        for runtime, base in self.base.items():
            placed, times = self._place(form, runtime, written)
            for entry, one in written.items():
                lowered, layers = placed[entry]
                variant = replace(self._prove(form, runtime, entry, lowered, one.references), layers=layers)
                pair = (base[entry].data, lowered.data)
                with self.clock.stage(f"time {called(form.name, entry)} on {runtime} beside fp32"):
                    compared = compare_forms(
                        variant, pair, BACKENDS[runtime].suffix, one.references.inputs[0], self.places[runtime],
                        bit_operations=one.counted, asked_db=form.asked_db,
                    )  # fmt: skip
                yield Made(variant, lowered.data, tuple(compared), times)

    def _place(self, form: Form, runtime: RuntimeName, written: Mapping[Entry, _Written]) -> tuple[_Placed, _Times]:
        """Lower a form's programs to a runtime, by measuring there where it is such a form."""
        if form.fit:
            ((entry, one),) = written.items()
            with self.clock.stage(f"measure the layers of {form.name} on {runtime}"):
                base = self.base[runtime][entry]
                fitted = form.fit(one.program, runtime, self.places[runtime], base, self.clock.step)
            return {entry: (fitted.lowered, fitted.layers)}, fitted.times
        with self.clock.stage(f"lower {form.name} to {runtime}"), quiet():
            found = lower_together(runtime, {entry: one.program for entry, one in written.items()})
        return {entry: (lowered, written[entry].layers) for entry, lowered in found.items()}, ()

    def own_golden(self) -> dict[str, bytes]:
        """Payloads of golden vectors that each of several models but the first has of its own."""
        return {
            path: pack(self.members[entry].references.golden()[0])
            for entry in self.members
            for path in self._golden_paths(entry)
        }

    def _golden_paths(self, entry: Entry) -> tuple[str, ...]:
        """Of the first model the package's own; one of each other: they can outweigh what variants add in weights."""
        return () if entry == next(iter(self.members)) else (f"golden/{entry}/0.msgpack",)

    def _share(self, entry: Entry) -> float | None:
        if entry is None:
            return None
        return self._counts[entry] / max(1, *self._counts.values())

    @cached_property
    def _counts(self) -> dict[Entry, int]:
        """What each of the models computes, which takes a run of it."""
        return {entry: bit_operations(member.captured) for entry, member in self.members.items()}

    def _prove(
        self, form: Form, runtime: RuntimeName, entry: Entry, lowered: Lowered, references: References | None = None
    ) -> Variant:
        member = self.members[entry]
        with self.clock.stage(f"verify {called(form.name, entry)} on {runtime}"):
            variant = _prove(
                member.captured, runtime, form, lowered, references or member.references, self.places[runtime], entry
            )
        return replace(variant, golden=self._golden_paths(entry), share=self._share(entry))


@dataclass(frozen=True)
class _Written:
    """A model in a form."""

    program: Captured
    layers: tuple[LayerForm, ...]
    references: References
    counted: float | None
    """Multiplications times bits, over fp32's."""


def _rewrite(form: Form, member: Member) -> _Written:
    program, layers = form.rewrite(member.captured, member.batches)
    references = with_program(member.references, program) if form.rounds else member.references
    whole = bit_operations(member.captured) if form.rounds else 0
    return _Written(program, layers, references, bit_operations(member.captured, layers) / whole if whole else None)


def lower_together(runtime: RuntimeName, programs: Mapping[Entry, Captured]) -> dict[Entry, Lowered]:
    """Into one artifact."""
    backend = BACKENDS[runtime]
    named = {entry: program for entry, program in programs.items() if entry is not None}
    return dict(backend.lower_entries(named).items()) if named else {None: backend.lower(programs[None])}


def called(form: str, entry: Entry) -> str:
    """A form's name, with which of several models it is of."""
    return form if entry is None else f"{form}-{entry}"


def check_alike(captured: Mapping[Entry, Captured]) -> None:
    """See that models can stand in for each other.

    Raises:
        ModelError: one takes or gives something else.
    """
    (first, wanted), *others = ((entry, one.signature) for entry, one in captured.items())
    for entry, found in others:
        if found != wanted:
            raise ModelError(
                f"{entry} is no variant of the model that {first} is: it takes and gives {_say(found)}, and {first} "
                f"{_say(wanted)}"
            )


class Clock:
    """Announces stages and keeps their durations."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage, while the block runs."""
        self._progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def step(self, what: str) -> None:
        """Announce a step of a stage."""
        self._progress(f"  {what}")


def _say(signature: Signature) -> str:
    inputs, outputs = (", ".join(spec.describe() for spec in specs) for specs in (signature.inputs, signature.outputs))
    return f"({inputs}) -> ({outputs})"


def _prove(
    captured: Captured,
    runtime: RuntimeName,
    form: Form,
    artifact: Lowered,
    references: References,
    places: Sequence[Interpreter],
    entry: Entry,
) -> Variant:
    name = f"{runtime}-{called(form.name, entry)}"
    backend = BACKENDS[runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{backend.suffix}"
        path.write_bytes(artifact.data)
        signature, verified = verify(path, name, runtime, references, form.sqnr_min_db, places, entry)
    return Variant(
        name=name,
        form=form.name,
        runtime=runtime,
        payload=f"artifacts/{form.name}{backend.suffix}",
        entry=entry,
        signature=signature,
        requires=Requirements(
            interpreters={v.interpreter: v.version for v in verified},
            operators=kernels.VERSION if artifact.lowering.kernels else 0,
            memory_estimate_bytes=2 * len(artifact.data) + activations_peak_bytes(captured),
        ),
        lowering=artifact.lowering,
        origins=artifact.origins,
        verified=verified,
        sqnr_min_db=_device_bar(verified) if form.rounds else None,
    )


def _device_bar(verified: Sequence[Verification]) -> float:
    return max(SQNR_LEAST_DB, min(one.sqnr_db for one in verified) - _DEVICE_ROOM_DB)

"""Runs the package in the active slot, each session in a process of its own."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from ferryman.devices.agent.ready import Readings
from ferryman.devices.agent.stepdown import Rung, StepDown, ladder
from ferryman.profiler.drift import Served
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.messages import InferReply, InferRequest
from ferryman.runtime.contracts.slot import Slot
from ferryman.runtime.contracts.tensor import Array, to_tensors
from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.session import fit
from ferryman.runtime.slots import Installed, SlotStore

CACHE = "cache"
"""Folder of packed weights, in the store's root."""
HANG_S = 10.0
"""A call that is given less and does not end in time says nothing of the package."""
log = logging.getLogger(__name__)


class Watch(Protocol):
    """Is told of every inference; see `ferryman.devices.agent.health`."""

    def answered(self, package_sha256: str, latency_ns: int) -> None:
        """A package answered."""

    def failed(self, package_sha256: str) -> None:
        """It did not, and nobody else is to blame."""


class Serving:
    """The active slot and its open sessions; used by one thread, but for `adapt`, `answers` and `abort`."""

    def __init__(self, store: SlotStore, watch: Watch | None = None, steps: StepDown | None = None) -> None:
        """Nothing is opened yet.

        Args:
            store: the slot store.
            watch: is told of every inference.
            steps: when a smaller variant than the picked one answers; None: never.
        """
        self._store, self._watch, self._steps = store, watch, steps
        self._rungs: tuple[Rung, ...] = ()
        """What may answer requests that name no variant: the picked one, then smaller ones; empty: not known yet."""
        self._slot: Slot | None = None
        self._installed: Installed | None = None
        self._sessions: dict[tuple[str, str], IsolatedSession] = {}
        self._served: Served | None = None

    def current(self) -> Installed:
        """The active slot; read back and verified when it is not the one seen last.

        Raises:
            DeviceError: none is active, or its files are damaged.
        """
        slot = self._store.read_state().active
        if slot is None or slot != self._slot or self._installed is None:
            self.close()
            self._slot = slot
            self._installed = self._store.active()
            self._rungs = _rungs(self._installed) if self._steps else ()
        return self._installed

    def adapt(self, now: Readings) -> bool:
        """Take in how the device is; whether another variant answers from now on. May be called from any one thread."""
        if self._steps is None or not self._steps.update(now, max(len(self._rungs) - 1, 0)):
            return False
        log.warning("requests are answered by %s", self.answers or "the variant that was picked")
        return True

    @property
    def answers(self) -> str | None:
        """What answers where a request names no variant, in words; None: the first that runs here."""
        rungs, slot = self._rungs, self._slot
        if self._steps and 0 < self._steps.level < len(rungs):
            rung = rungs[self._steps.level]
            return f"{rung.variant.name} on {rung.interpreter}, a smaller one while {self._steps.reason}"
        return slot.answers if slot else None

    def answering(self) -> tuple[Variant, str]:
        """The variant and interpreter that answer where a request names neither.

        Raises:
            DeviceError: nothing is active, its files are damaged, or nothing here runs it.
        """
        installed, rungs = self.current(), self._rungs
        if self._steps and 0 < self._steps.level < len(rungs):
            return rungs[self._steps.level]
        return picked(installed.manifest.variants, installed.slot)

    def infer(self, request: InferRequest, timeout_s: float) -> InferReply:
        """One inference with the active package.

        Raises:
            CallerError: inputs, variant or interpreter do not fit the package.
            DeviceError: nothing is active, its files are damaged, or nothing here runs the variant.
            RuntimeFault: the interpreter failed, or took longer than `timeout_s`.
            RuntimeCrash: it died; the next request starts it anew.
        """
        installed = self.current()
        variants = installed.manifest.variants
        if request.variant is None and request.interpreter is None:
            variant, interpreter = self.answering()
        else:
            variant, interpreter = choose(variants, request.variant, request.interpreter)
        try:
            given = [tensor.to_array() for tensor in request.inputs]
        except ValueError as error:
            raise CallerError(f"inputs: {error}") from error
        inputs = fit(given, installed.manifest.signature)
        deadline = time.monotonic() + timeout_s
        try:
            session = self._session(installed, variant, interpreter, timeout_s)
            session.timeout_s = deadline - time.monotonic()
            outputs = self._run(session, inputs, variant, interpreter)
        except CallerError:
            raise
        except Exception:
            if self._watch and (timeout_s >= HANG_S or time.monotonic() < deadline):
                self._watch.failed(installed.slot.package_sha256)
            raise
        if self._watch:
            self._watch.answered(installed.slot.package_sha256, session.last_run_ns)
        specs = installed.manifest.signature.outputs
        outputs = [a.astype(spec.dtype, copy=False) for a, spec in zip(outputs, specs, strict=True)]
        self._served = Served(
            package_name=installed.slot.package_name,
            package_sha256=installed.slot.package_sha256,
            variant=variant.name,
            interpreter=interpreter,
            input_names=tuple(spec.name for spec in installed.manifest.signature.inputs),
            output_names=tuple(spec.name for spec in specs),
            inputs=inputs,
            outputs=outputs,
        )
        return InferReply(
            outputs=to_tensors(outputs),
            names=self._served.output_names,
            duration_ns=session.last_run_ns,
            variant=variant.name,
            interpreter=interpreter,
        )

    def _run(self, session: IsolatedSession, inputs: list[Array], variant: Variant, interpreter: str) -> list[Array]:
        try:
            return session.run(inputs)
        except CallerError:
            raise
        except BaseException:
            self._forget(variant, interpreter)
            raise

    def take_served(self) -> Served | None:
        """The last inference that was answered, for statistics; None: it was taken already."""
        served, self._served = self._served, None
        return served

    def abort(self) -> None:
        """End every session's process, from any thread; a request under way fails with RuntimeCrash."""
        for session in list(self._sessions.values()):
            session.kill()

    def release(self) -> None:
        """Close the sessions, so that a profiling run has the device to itself."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def close(self) -> None:
        """Close everything."""
        self.release()
        self._slot = self._installed = None
        self._rungs = ()

    def _session(self, installed: Installed, variant: Variant, interpreter: str, timeout_s: float) -> IsolatedSession:
        """Variants that share a payload share a process too, and their weights in it."""
        session = self._sessions.get((variant.payload, interpreter))
        if session is None:
            artifact = self._store.verify_payload(installed, variant.payload)
            hashes = {payload.path: payload.sha256 for payload in installed.manifest.payloads}
            session = IsolatedSession(
                artifact,
                variant.runtime,
                interpreter=interpreter,
                entry=variant.entry,
                cache=self._store.root / CACHE,
                sha256=hashes[variant.payload],
                timeout_s=timeout_s,
            )
            self._sessions[variant.payload, interpreter] = session
        elif session.entry != variant.entry:
            session.timeout_s = timeout_s
            try:
                session.switch(variant.entry)
            except BaseException:
                self._forget(variant, interpreter)
                raise
        return session

    def _forget(self, variant: Variant, interpreter: str) -> None:
        self._sessions.pop((variant.payload, interpreter)).close()


def _rungs(installed: Installed) -> tuple[Rung, ...]:
    variants, slot = installed.manifest.variants, installed.slot
    try:
        top = Rung(*picked(variants, slot))
    except DeviceError:  # it is told to whoever asks
        return ()
    return (top, *ladder(variants, slot.measured, top))


def picked(variants: tuple[Variant, ...], slot: Slot) -> tuple[Variant, str]:
    """What the slot says answers, or where that does not run here any more, the first that does.

    Raises:
        DeviceError: this device has no interpreter for any.
    """
    for variant in variants:
        if variant.name == slot.variant and slot.interpreter in usable_interpreters(variant):
            return variant, str(slot.interpreter)
    return choose(variants, None, None)


def choose(variants: tuple[Variant, ...], name: str | None, interpreter: str | None) -> tuple[Variant, str]:
    """Pick a variant and an interpreter of this device for it: those named, or the first that fit.

    Raises:
        CallerError: no such variant, or the interpreter is not one it was proven on.
        DeviceError: this device has no interpreter for it.
    """
    named = [variant for variant in variants if name in (None, variant.name)]
    if not named:
        raise CallerError(f"no variant {name!r}; there are: {', '.join(v.name for v in variants)}")
    for variant in named:
        for usable in usable_interpreters(variant):
            if interpreter in (None, usable):
                return variant, usable
    needs = sorted({needed for variant in named for needed in variant.requires.interpreters})
    if interpreter is not None and interpreter not in needs:
        raise CallerError(f"interpreter {interpreter!r} does not run that; those that do: {', '.join(needs)}")
    raise DeviceError(f"this device has none of the interpreters needed: {interpreter or ', '.join(needs)}")

"""Brings a device what it should run: fetch, install on trial, watch, then confirm it or go back. One thread's work.

What was asked for and what was said last are on disk, so a restart goes on where the last agent ended, broker or not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ferryman.devices.agent.wishes import expect, holds, read, write
from ferryman.devices.mqtt import backoff_s
from ferryman.runtime.contracts.errors import (
    BudgetError,
    BusyError,
    DeviceError,
    FerrymanError,
    LinkError,
    WireError,
    to_wire,
)
from ferryman.runtime.contracts.rollout import Desired, Health, Reported, State
from ferryman.runtime.contracts.slot import Slot, SlotState, Trial
from ferryman.runtime.install import GoldenCheck, Progress
from ferryman.runtime.slots import SlotStore

if TYPE_CHECKING:
    from ferryman.devices.agent.update.client import UpdateClient

log = logging.getLogger(__name__)

FOLDER = "update"
"""In the store's root: what was asked for, what was said, what was spent."""
PROGRESS_S = 5.0
"""How often a download says how far it is."""
WATCH_S = 1.0
RETRY_FIRST_S, RETRY_CAP_S = 5.0, 600.0
WAIT_S = 60.0
"""How often a device that waits looks whether it must still."""
BUSY_S = 10.0
VERSION_STEP_MAX = 1_000_000
FINAL: tuple[State, ...] = ("confirmed", "rolled-back", "refused", "failed")
"""Until something else is desired, that was it."""


@dataclass(frozen=True)
class Hands:
    """What updating needs of others; tests bring their own."""

    client: Callable[[threading.Event], UpdateClient]
    """Opens the repository, once for every attempt; the attempt ends when the event is set."""
    ready: Callable[[Desired], str]
    """Why this device should not be touched just now; empty: it may."""
    health: Callable[[], Health | None]
    """How the active package has served since its trial began, or since the agent started; None: nothing serves."""
    report: Callable[[Reported], None]
    """Told of every change."""
    before_latency_ns: Callable[[], int | None] = lambda: None
    """Median of a call of what serves now; None: nobody asked."""
    energy: Callable[[SlotState], tuple[float | None, float | None]] = lambda _: (None, None)
    """Joules of a call, of the package on trial and of the one before; None: there is no meter."""
    golden: Callable[[str], GoldenCheck] | None = None
    """Pick -> how the golden vectors are run; None: a meter is beside them where the pick asks for energy."""


class Updating:
    """One device's way from what it runs to what it should."""

    def __init__(self, store: SlotStore, device: str, model: str, hands: Hands) -> None:
        """Read what an earlier agent left.

        Raises:
            DeviceError: the store cannot be read.
        """
        self._store = store
        self._hands = hands
        self._folder = store.root / FOLDER
        self._desired = read(self._folder / "desired.json", Desired)
        said = read(self._folder / "reported.json", Reported)
        self._said = said or Reported(
            device=device,
            at_ns=time.time_ns(),
            desired_version=0,
            rollout="",
            state="confirmed",
            release=None,
            package_sha256=None,
            model=model,
        )
        self._said = replace(self._said, device=device, model=model)
        self._changed = threading.Event()
        self._cancelled = threading.Event()
        self._failures = 0
        self._lock = threading.Lock()

    @property
    def said(self) -> Reported:
        """What was reported last; to be said again on every new connection."""
        return self._said

    def desire(self, desired: Desired) -> None:
        """Take note of what this device should run; an older version is ignored. Any thread may call."""
        with self._lock:
            newest = self._desired.version if self._desired else self._said.desired_version
            if desired.version < newest or (self._desired and desired.version == newest):
                return
            if desired.version > newest + VERSION_STEP_MAX:
                log.warning(
                    "a wish of version %d is ignored, %d was the last: it would lock out all others; see who may write "
                    "to this device's topic",
                    desired.version,
                    newest,
                )
                return
            try:
                write(self._folder / "desired.json", desired)
            except DeviceError as error:
                log.warning("%s; a restart will have to be told again", error)
            self._desired = desired
            self._failures = 0
        self._cancelled.set()
        self._changed.set()

    def forget(self) -> None:
        """Nothing is desired any more: what is not installed yet will not be. Any thread may call."""
        with self._lock:
            self._desired = None
            path = self._folder / "desired.json"
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot remove %s: %s; a restart will want it again", path, error.strerror)
        self.wake()

    def look(self) -> None:
        """Another process may have changed what serves. Any thread may call."""
        self._changed.set()

    def note_start(self) -> None:
        """Count this start of the agent within a trial, before anything is served; a crash loop ends the trial."""
        from ferryman.runtime.trial import count_start

        before = self._store.read_state()
        if before.trial is None:
            return
        try:
            after = count_start(self._store)
        except DeviceError as error:
            log.error("this start was not counted: %s", error)  # noqa: TRY400  # said in full
            return
        if after.trial is None:
            self._say_rolled_back(before, after.bad[-1].reason if after.bad else "a crash loop")

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` was called."""
        while not stop.is_set():
            self._changed.clear()
            self._cancelled.clear()
            if stop.is_set():  # since the line above looked: its signal was just cleared
                return
            try:
                wait_s = self._step()
            except FerrymanError as error:
                log.warning("update: %s", error)
                wait_s = WAIT_S
            except Exception:  # one bad update must not end the agent
                log.exception("update")
                wait_s = WAIT_S
            if not stop.is_set():
                self._changed.wait(wait_s)

    def wake(self) -> None:
        """Have `run` look at once, and a download end."""
        self._cancelled.set()
        self._changed.set()

    def _step(self) -> float | None:
        """Do the next thing; returns the seconds until there may be another, None: until something changes."""
        state, desired = self._store.read_state(), self._desired
        said = self._said
        if said.package_sha256 != (state.active.package_sha256 if state.active else None) and said.state in FINAL:
            self._publish(said.desired_version, said.rollout, said.state, said.error)
        if state.trial is not None and not (desired and self._open(desired) and desired.previous):
            return self._watch(state, state.trial)
        if desired is None or not self._open(desired):
            return None
        return self._bring(desired, state)

    def _open(self, desired: Desired) -> bool:
        """Whether there is something to do for it still."""
        return self._said.desired_version < desired.version or self._said.state not in FINAL

    def _bring(self, desired: Desired, state: SlotState) -> float | None:
        """One attempt, and what its end means."""
        from ferryman.devices.agent.update.budget import DayBudgetError
        from ferryman.devices.agent.update.config import Cancelled, LaterError

        try:
            self._attempt(desired, state)
        except Cancelled:
            return 0.0
        except DayBudgetError as error:
            self._say(desired, "waiting", error=to_wire(error))
            return WAIT_S
        except BudgetError as error:
            self._say(desired, "refused", error=to_wire(error))
        except BusyError as error:
            self._say(desired, "waiting", error=to_wire(error))
            return BUSY_S
        except LinkError as error:
            self._say(desired, "downloading", error=to_wire(error))
            self._failures += 1
            asked_s = error.after_s if isinstance(error, LaterError) else 0.0
            return max(asked_s, backoff_s(self._failures, RETRY_FIRST_S, RETRY_CAP_S))
        except FerrymanError as error:
            self._say(desired, "failed", error=to_wire(error))
        return 0.0

    def _attempt(self, desired: Desired, state: SlotState) -> None:
        from ferryman.runtime.trial import is_bad

        if desired.previous and holds(state.previous, desired):
            self._store.rollback(reason=None)
            self._say(desired, "confirmed")
            return
        if holds(state.active, desired) and state.active:
            self._settle(desired, state.active)
            return
        if self._said.state == "trial" and self._said.desired_version == desired.version:
            serving = f"{state.active.package_name} was installed" if state.active else "it was taken out"
            self._say(desired, "failed", error=to_wire(DeviceError(f"its trial was ended by hand: {serving}")))
            return
        if (bad := is_bad(state, desired.package_sha256)) and not (desired.force or desired.previous):
            name = desired.release or "package"
            self._say(desired, "refused", error=to_wire(DeviceError(bad.refusal(name))))
            return
        if not desired.release:
            error = DeviceError(f"package {desired.package_sha256[:12]} is in no slot here, and no release is named")
            self._say(desired, "refused", error=to_wire(error))
            return
        if why := self._hands.ready(desired):
            self._say(desired, "waiting", error=WireError(party="device", message=why))
            self._changed.wait(WAIT_S)
            return
        self._fetch_and_install(desired)

    def _settle(self, desired: Desired, active: Slot) -> None:
        """The package serves already; perhaps another of its variants should answer, and it has the release's name."""
        from ferryman.runtime.install import repick
        from ferryman.runtime.staged import name_active

        if active.pick != desired.pick and not desired.previous:  # the way back is to what it was, its pick too
            repick(self._store.root, desired.pick, golden=self._golden(desired))
        if desired.release:
            try:
                name_active(self._store, desired.package_sha256, desired.release)
            except BusyError:
                raise
            except DeviceError as error:  # it serves all the same
                log.warning("that it serves %s is not written down: %s", desired.release, error)
        self._say(desired, "confirmed")

    def _fetch_and_install(self, desired: Desired) -> None:
        from ferryman.runtime.staged import install_staged

        self._say(desired, "downloading")
        with self._hands.client(self._cancelled) as client:
            release = client.check(desired.release)
            expect(release, desired)
            staged = client.fetch(
                release,
                desired.variants,
                update=f"{desired.rollout} {desired.version}",
                update_max_bytes=desired.update_max_bytes,
                progress=self._progress(desired),
            )
            for note in staged.notes:
                log.warning("update %s: %s", desired.rollout, note)
            self._say(desired, "installing", wire_bytes=staged.wire_bytes, wire_total_bytes=staged.planned_bytes)
            result = install_staged(
                self._store,
                staged.directory,
                staged.manifest,
                package_sha256=release.package_sha256,
                release=release.name,
                variants=staged.variants,
                pick=desired.pick,
                trial=None if desired.previous else self._trial(desired),
                force=desired.force or desired.previous,
                golden=self._golden(desired),
            )
            client.discard(release)
        if result.active.measured:
            self._said = replace(self._said, measured=result.active.measured)
        self._say(desired, "confirmed" if desired.previous else "trial")

    def _golden(self, desired: Desired) -> GoldenCheck:
        from ferryman.devices.agent.update.energy import golden_check

        return (self._hands.golden or golden_check)(desired.pick)

    def _trial(self, desired: Desired) -> Trial:
        return Trial(
            desired_version=desired.version,
            rollout=desired.rollout,
            rules=desired.health,
            began_at_ns=time.time_ns(),
            starts=1,
            before_latency_ns=self._hands.before_latency_ns(),
        )

    def _progress(self, desired: Desired) -> Progress:
        told = time.monotonic()

        def progress(_step: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= PROGRESS_S:
                told = time.monotonic()
                self._say(desired, "downloading", wire_bytes=done, wire_total_bytes=total)

        return progress

    def _watch(self, state: SlotState, trial: Trial) -> float:
        """Look how the package on trial serves."""
        from ferryman.runtime.trial import confirm, fail, judge

        health = self._hands.health()
        if health is None:
            return WATCH_S
        sha256 = state.active.package_sha256 if state.active else None
        if reason := judge(trial.rules, health):
            fail(self._store, reason, sha256)
            self._say_rolled_back(state, reason, health)
            return 0.0
        if health.seconds < trial.rules.window_s:
            return max(0.05, min(WATCH_S, trial.rules.window_s - health.seconds))
        now_j, before_j = self._hands.energy(state)
        health = replace(health, energy_j=now_j, before_energy_j=before_j)
        if confirm(self._store, sha256).trial is None:
            self._say_of(trial, "confirmed", health=health)
        return 0.0

    def _say_rolled_back(self, before: SlotState, reason: str, health: Health | None = None) -> None:
        name = before.active.package_name if before.active else "the package"
        error = to_wire(DeviceError(f"{name} served badly: {reason}"))
        if before.trial is not None:
            self._say_of(before.trial, "rolled-back", error=error, health=health)

    def _say_of(
        self, trial: Trial, state: State, *, error: WireError | None = None, health: Health | None = None
    ) -> None:
        self._said = replace(self._said, health=health)
        self._publish(trial.desired_version, trial.rollout, state, error)

    def _say(
        self,
        desired: Desired,
        state: State,
        *,
        error: WireError | None = None,
        wire_bytes: int | None = None,
        wire_total_bytes: int | None = None,
    ) -> None:
        if desired.version != self._said.desired_version:
            self._said = replace(self._said, wire_bytes=0, wire_total_bytes=0, measured=(), health=None)
        self._said = replace(
            self._said,
            wire_bytes=self._said.wire_bytes if wire_bytes is None else wire_bytes,
            wire_total_bytes=self._said.wire_total_bytes if wire_total_bytes is None else wire_total_bytes,
        )
        self._publish(desired.version, desired.rollout, state, error)

    def _publish(self, version: int, rollout: str, state: State, error: WireError | None) -> None:
        """Say it, once it is on disk; saying the same again is saved."""
        slot = self._store.read_state().active
        new = replace(
            self._said,
            at_ns=time.time_ns(),
            desired_version=version,
            rollout=rollout,
            state=state,
            error=error,
            release=slot.release if slot else None,
            package_sha256=slot.package_sha256 if slot else None,
        )
        if error is None:
            log.info("update %s: %s", rollout, state)
        else:
            log.warning("update %s: %s: %s: %s", rollout, state, error.party, error.message)
        try:
            write(self._folder / "reported.json", new)
        except DeviceError as failed:
            log.warning("%s", failed)
        self._said = new
        self._hands.report(new)

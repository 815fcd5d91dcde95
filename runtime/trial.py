"""A package on trial: its starts are counted, then it is confirmed, or the one before serves again."""

from __future__ import annotations

import time

from msgspec.structs import replace

from ferryman.runtime.contracts.rollout import Health
from ferryman.runtime.contracts.slot import BadPackage, HealthRules, SlotState
from ferryman.runtime.slots import SlotStore, disk_errors, rolled_back, with_bad

_LOCK_WAIT_S = 5.0
_ERRORS_EARLY = 5
"""So many errors are no chance: with a larger share than the rules allow, the window need not end first."""


def count_start(store: SlotStore) -> SlotState:
    """Write down that the agent starts, before it serves; a crash loop ends the trial.

    Without a trial nothing is written. Returns the state that counts from now on.

    Raises:
        DeviceError: the disk refuses, or an install holds the store; the start is not counted, and what serves may
            serve.
    """
    if store.read_state().trial is None:
        return store.read_state()
    with store.lock(_LOCK_WAIT_S), disk_errors(store):
        state = store.read_state()
        if state.trial is None:
            return state
        starts = state.trial.starts + 1
        if starts > state.trial.rules.starts_max:
            return _end(store, state, loop_of(starts), crashes=True)
        state = replace(state, trial=replace(state.trial, starts=starts))
        store.write_state(state)
        return state


def confirm(store: SlotStore, package_sha256: str | None = None) -> SlotState:
    """Let the package on trial serve for good; one step, and nothing where none is on trial.

    Args:
        store: the slot store.
        package_sha256: only if it is this one; None: whichever.

    Raises:
        DeviceError: the disk refuses, or an install holds the store.
    """
    with store.lock(_LOCK_WAIT_S), disk_errors(store):
        state = store.read_state()
        if _on_trial(state, package_sha256):
            state = replace(state, trial=None)
            store.write_state(state)
        return state


def fail(store: SlotStore, reason: str, package_sha256: str | None = None, *, crashes: bool = False) -> SlotState:
    """End a trial badly: the package before serves again, and this one is not tried again by itself.

    Where there is none before it, or it is damaged, a package that answers serves on, known to be bad: that is better
    than nothing. One that crashes is worse than nothing, and nothing serves.

    Args:
        store: the slot store.
        reason: for people.
        package_sha256: only if it is this one; None: whichever is on trial.
        crashes: whether it brings the agent down.

    Raises:
        DeviceError: the disk refuses, or an install holds the store.
    """
    with store.lock(_LOCK_WAIT_S), disk_errors(store):
        state = store.read_state()
        return _end(store, state, reason, crashes=crashes) if _on_trial(state, package_sha256) else state


def is_bad(state: SlotState, package_sha256: str) -> BadPackage | None:
    """What is known against a package."""
    return next((one for one in state.bad if one.package_sha256 == package_sha256), None)


def judge(rules: HealthRules, health: Health) -> str | None:
    """Why a package on trial is bad; None: nothing is against it so far.

    Latency and drift are told by the whole window; crashes, and errors once they are no chance, need not wait for it.
    """
    if health.starts > rules.starts_max:
        return loop_of(health.starts)
    over = health.seconds >= rules.window_s
    share = health.errors / max(health.requests, 1)
    if health.errors and share > rules.errors_max and (over or health.errors >= _ERRORS_EARLY):
        return f"{health.errors} of {health.requests} requests failed, more than {rules.errors_max:.1%}"
    return (_slow(rules, health) or _drifted(rules, health)) if over else None


def loop_of(starts: int) -> str:
    """The reason of a crash loop."""
    return f"a crash loop: the agent started {starts} times during the trial"


def _slow(rules: HealthRules, health: Health) -> str | None:
    before = health.before_latency_ns if rules.slower_max is not None else None
    if rules.latency_max_ms is None and before is None:
        return None
    if health.latency_ns is None:
        return "its latency was asked for, and no call of it could be timed"
    latency_ms = health.latency_ns / 1e6
    if rules.latency_max_ms is not None and latency_ms > rules.latency_max_ms:
        return f"a call takes {latency_ms:,.3f} ms (median), more than {rules.latency_max_ms:g} ms"
    if before is not None and rules.slower_max is not None and health.latency_ns > rules.slower_max * before:
        times = health.latency_ns / max(before, 1)
        return f"a call takes {times:.2f} times as long as before (median), more than {rules.slower_max:g} times"
    return None


def _drifted(rules: HealthRules, health: Health) -> str | None:
    if rules.drift_max is None or health.drift is None or health.drift <= rules.drift_max:
        return None
    return f"its outputs are {health.drift:.3f} away from those of the package before, more than {rules.drift_max:g}"


def _on_trial(state: SlotState, package_sha256: str | None) -> bool:
    if state.trial is None or state.active is None:
        return False
    return package_sha256 in (None, state.active.package_sha256)


def _end(store: SlotStore, state: SlotState, reason: str, *, crashes: bool) -> SlotState:
    now = time.time_ns()
    if store.intact(state.previous):
        new = rolled_back(state, reason, now)
    else:
        bad = with_bad(state, reason, now)
        new = SlotState(active=None if crashes else state.active, bad=bad)
    store.write_state(new)
    return new

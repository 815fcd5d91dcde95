"""The table of states fits together, and the docs are what it says; integration tests hold the disk against it."""

from __future__ import annotations

from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged
from ferryman.runtime.states import BY_NAME, STATES, at_rest, page
from ferryman.runtime.trial import confirm
from tests.support.interpreters import ROOT
from tests.support.packages import stage, write_tiny_package
from tests.unit.runtime.test_trial import TRIAL

RESTING = {"idle", "downloading", "staged", "trial"}


def test_the_docs_are_what_the_code_says():
    assert (ROOT / "docs/ota/states.md").read_text() == page(), "python -m ferryman.runtime.states > docs/ota/states.md"


def test_every_state_leads_to_states_there_are_and_every_cut_to_one_that_can_rest():
    assert len(BY_NAME) == len(STATES)
    for state in STATES:
        assert {state.done, state.fails or "idle"} <= set(BY_NAME), state
        assert set(state.cut) <= RESTING, state
        assert state.serves, state


def test_from_every_state_an_update_ends_by_going_well_and_by_failing():
    for state in STATES:
        for way in ("done", "fails"):
            at, seen = state.name, []
            while at != "idle" and at not in seen:
                seen.append(at)
                at = (way == "fails" and at != "rolling back" and BY_NAME[at].fails) or BY_NAME[at].done
            assert at == "idle", (state.name, way, seen)


def test_only_activating_and_ends_of_a_trial_change_what_serves():
    assert [state.name for state in STATES if len(state.serves) > 1] == ["activating", "rolling back"]


def test_an_install_goes_through_the_steps_of_the_table_in_order(tmp_path):
    store = SlotStore(tmp_path / "root")
    downloads = store.root / "download"
    steps, resting = [], []

    def look(step, _done, _total):
        steps.append(step)
        resting.append(at_rest(store, downloads))

    assert at_rest(store, downloads) == "idle"
    manifest, sha256 = stage(write_tiny_package(tmp_path / "1.ferry"), downloads / "1")
    options = {"package_sha256": sha256, "release": "add/1", "golden": lambda *_: (), "progress": look}
    install_staged(store, downloads / "1", manifest, trial=TRIAL, **options)
    assert list(dict.fromkeys(steps)) == [state.step for state in STATES if state.step]
    assert set(resting) == {"staged"}
    assert at_rest(store, downloads) == "trial"
    for path in (downloads / "1").rglob("*"):
        if path.is_file():
            path.unlink()
    confirm(store)
    assert at_rest(store, downloads) == "idle"
    steps.clear()
    install(write_tiny_package(tmp_path / "2.ferry", added=2.0), store.root, golden=lambda *_: (), progress=look)
    assert list(dict.fromkeys(steps)) == ["verify", *(state.step for state in STATES if state.step)]

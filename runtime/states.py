"""Every state of an install, and where a power cut in it leads: data, from which docs/ota/states.md is written.

    python -m ferryman.runtime.states > docs/ota/states.md

Tests kill an install at each of its system calls and hold what is found on the disk against this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ferryman.runtime.slots import SlotStore

Package = Literal["old", "new"]
"""What served when the update began (it may be nothing), and the package of the update."""


@dataclass(frozen=True)
class State:
    """One row of the table."""

    name: str
    doing: str
    done: str
    """The state after it."""
    fails: str
    """The state after an error in it; empty: there is none to make."""
    cut: tuple[str, ...]
    """The states a power cut in it may leave."""
    serves: tuple[Package, ...]
    """What may serve after the cut; always one of them, whole."""
    then: str
    """What the next start does."""
    step: str = ""
    """How `progress` calls it; empty: it is no step of writing a slot."""


_AGAIN = "begins again with what is staged; nothing is fetched twice"

STATES = (
    State("idle", "a confirmed package serves, or nothing does yet", "downloading", "", ("idle",), ("old",), "serves"),
    State(
        "waiting",
        "a window, the battery, heat or requests speak against an update now",
        "downloading",
        "idle",
        ("idle",),
        ("old",),
        "serves, and asks again what is wanted",
    ),
    State(
        "downloading",
        "pieces are written into files below ROOT/download",
        "staged",
        "idle",
        ("downloading",),
        ("old",),
        "hashes what is there, and fetches what is missing",
    ),
    State("staged", "every payload is there, whole and on the disk", "clearing", "idle", ("staged",), ("old",), _AGAIN),
    State(
        "clearing",
        "a trial of another package ends, the way back is forgotten, and its files are removed",
        "writing",
        "staged",
        ("staged",),
        ("old",),
        f"{_AGAIN}; the way back may be gone",
        step="clear",
    ),
    State(
        "writing",
        "payloads are linked (of a pushed package: written) into the inactive slot, then files and folders are synced",
        "reading back",
        "staged",
        ("staged",),
        ("old",),
        _AGAIN,
        step="write",
    ),
    State(
        "reading back",
        "each file of the slot is read from the disk and hashed",
        "proving",
        "staged",
        ("staged",),
        ("old",),
        _AGAIN,
        step="read back",
    ),
    State(
        "proving",
        "each variant runs the golden vectors, in a process of its own",
        "activating",
        "staged",
        ("staged",),
        ("old",),
        _AGAIN,
        step="golden vectors",
    ),
    State(
        "activating",
        "state.json is written beside itself, synced and renamed: the one moment that counts",
        "trial",
        "staged",
        ("staged", "trial"),
        ("old", "new"),
        "serves what state.json names",
        step="activate",
    ),
    State(
        "trial",
        "the new package serves, and is watched",
        "confirming",
        "rolling back",
        ("trial",),
        ("new",),
        "*starting*; the window begins anew",
    ),
    State(
        "starting",
        "the agent writes its start down, before it serves; one too many is a crash loop",
        "trial",
        "rolling back",
        ("trial",),
        ("new",),
        "counts itself",
    ),
    State(
        "confirming",
        "the trial is taken out of state.json",
        "idle",
        "trial",
        ("trial", "idle"),
        ("new",),
        "serves; where it is on trial still, the window begins anew",
    ),
    State(
        "rolling back",
        "the package before is read back, then state.json names it again and the new one among the bad",
        "idle",
        "trial",
        ("trial", "idle"),
        ("new", "old"),
        "serves; where it is on trial still, it is judged anew",
    ),
)
BY_NAME = {state.name: state for state in STATES}


def at_rest(store: SlotStore, downloads: Path) -> str:
    """In which state the disk is when no process works on it.

    Args:
        store: the slot store.
        downloads: the folder that files are staged in. Whether they are whole takes hashing them: here, `staged` is
            where there are any.

    Raises:
        DeviceError: state.json cannot be read.
    """
    if store.read_state().trial is not None:
        return "trial"
    return "staged" if any(path.is_file() for path in downloads.rglob("*")) else "idle"


def table() -> str:
    """The states in markdown."""
    head = ("State", "What is done", "Then", "After an error", "After a power cut", "Serves after it", "The next start")
    rows = [
        (
            f"**{one.name}**",
            one.doing,
            one.done,
            one.fails or "-",
            " or ".join(one.cut),
            " or ".join(one.serves),
            one.then,
        )
        for one in STATES
    ]
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page() -> str:
    """docs/ota/states.md."""
    return f"""# States of an update, and power cuts

<!-- Written by `python -m ferryman.runtime.states`; a test compares. -->

*Old* is what served when the update began, *new* is the package of the update. Whatever is cut, one of them serves,
whole: every hash is compared before it does. A state on the disk is one of idle, downloading, staged and trial; the
others are what a process does between two of them.

{table()}

- Where the old package is on trial itself, a cut in *clearing* leaves that trial, or the package before it serving.
- A package that is pushed over SSH is uploaded into `ROOT/incoming` instead of downloaded; a cut leaves *idle*, the
  upload is swept up a minute later, and pushing again is safe. It is confirmed at once: *activating* leads to *idle*.
- An error in *proving*, and every end of a trial but *confirming*, is the package's fault. A package that failed its
  trial is `bad`, and not tried again by itself.
- Where nothing can serve again in *rolling back* (there is no package before, or its files are damaged), a package that
  answers serves on and is known to be bad; one that crashes the agent is taken out, and nothing serves.
- A push or rollback by hand during a trial ends it. A push puts the package before the trial back first, and writes
  over the one on trial: the package that is known to be good is never what makes room. A package that is rolled back by
  hand is `bad`, or the next look at what is wanted would bring it back.
"""


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201  # a generator

"""Ferryman broken on purpose: a chaos run that does not notice is worth nothing.

`python -m tests.chaos.mutations NAME ARGUMENTS` is the command `ferryman ARGUMENTS` with that defect.
"""

from __future__ import annotations

import sys
from typing import Any

COLLECTOR = ("receipt-before-commit", "no-unique-key")
DEVICE = ("forget-on-broker-ack", "append-before-commit", "swapped-messages")
NAMES = COLLECTOR + DEVICE


def apply(name: str) -> None:
    """Break this process."""
    if name and name not in NAMES:
        raise ValueError(f"no mutation {name}; there are {', '.join(NAMES)}")
    if function := globals().get("_" + name.replace("-", "_")):
        function()


def publisher_options(name: str) -> dict[str, Any]:
    """What a device's publisher is told in place of its usual options; may import nothing of the host."""
    from ferryman.devices.agent.window import Limits

    options: dict[str, dict[str, Any]] = {
        "forget-on-broker-ack": {"confirm": "broker"},
        "no-unique-key": {"limits": Limits(again_first_s=0.02, again_cap_s=0.1)},  # most records are sent twice
    }
    return options.get(name, {})


def _receipt_before_commit() -> None:
    """The store says that a batch is committed, and commits it with the next one."""
    from ferryman.devices.fleet.store import store

    real = store.Store.insert
    waiting: list[Any] = []

    def insert(self: Any, batch: Any, now_ns: int) -> Any:
        waiting.append(batch)
        if len(waiting) < 2:
            return store.Inserted(0, 0, 0)
        return real(self, waiting.pop(0), now_ns)

    store.Store.insert = insert  # type: ignore[method-assign]


def _no_unique_key() -> None:
    """The table of records takes a record as often as it comes."""
    from sqlalchemy import PrimaryKeyConstraint

    from ferryman.devices.fleet.store.tables import records

    for column in list(records.primary_key):
        column.primary_key = False
    records.constraints.discard(records.primary_key)
    records.primary_key = PrimaryKeyConstraint()


def _swapped_messages() -> None:
    """Each second message goes out before the one that was to go before it."""
    from ferryman.devices.mqtt import Link

    real = Link.publish
    held: list[Any] = []

    def publish(self: Any, message: Any, *rest: Any) -> None:
        if not message.topic.endswith("/telemetry"):
            real(self, message, *rest)
        elif not held:
            held.append((message, rest))
        else:
            real(self, message, *rest)
            earlier, its_rest = held.pop()
            real(self, earlier, *its_rest)

    Link.publish = publish  # type: ignore[method-assign]


def _append_before_commit() -> None:
    """An append returns while it is still in memory, and comes to disk a little later."""
    from ferryman.devices.agent.outbox import Outbox

    real = Outbox.append_all
    waiting: list[Any] = []
    first = []

    def append_all(self: Any, records: Any, made: Any) -> list[int]:
        if records[0][0] not in {"sample", "log", "note"}:
            return real(self, records, made)
        if not first:
            sequences = real(self, records, made)
            first.append(sequences[-1] + 1)
            return sequences
        waiting.append((records, made))
        sequences = list(range(first[0], first[0] + len(records)))
        first[0] += len(records)
        if len(waiting) > 5:
            while waiting:
                real(self, *waiting.pop(0))
        return sequences

    Outbox.append_all = append_all  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    from ferryman.cli import main

    apply(sys.argv[1])
    del sys.argv[1]
    main()

"""A search with a device in its loop: of a teacher's students, the most accurate one within a latency budget.

In two stages, as N2N does it: layers are taken away, then those left shrink. What a student costs does not depend on
its weights, so all are measured untrained, and only those within the budget are trained at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from ferryman import Fleet, ProfileSpec
from ferryman.converter.work import work_of
from ferryman.devices.fleet.table import Table
from ferryman.profiler.predict.fit import fit
from ferryman.profiler.predict.predictor import Predictor
from tests.e2e.digits import images
from tests.zoo.search_nets import TEACHER, Layers, Student, shrunk, without

EXAMPLE = (torch.zeros(1, 1, 8, 8),)
SPEC = ProfileSpec(starts=3, error=0.02, interpreters=("executorch",))
_EPOCHS = 3


class Found(NamedTuple):
    """What a search came to."""

    name: str
    accuracy: float
    latency_ms: float
    budget_ms: float
    tables: tuple[Table, Table]
    """Of the two stages."""
    students: dict[str, Student]
    """All that were measured."""


def removals(layers: Layers) -> dict[str, Layers]:
    """The teacher, and students with one layer less or two."""
    one = {f"without {index}": without(layers, index) for index in (1, 3, 6)}
    two = {f"without {index}, {index + 1}": without(without(layers, index + 1), index) for index in (1, 3)}
    return {"teacher": layers, **one, **two}


def shrinkings(layers: Layers) -> dict[str, Layers]:
    """Students with one layer at half its width, and with all of them thinner."""
    one = {f"{index} at 1/2": shrunk(layers, index, 0.5) for index in range(len(layers))[-3:]}
    whole = {}
    for share, name in ((0.75, "3/4"), (0.5, "1/2"), (0.25, "1/4")):
        whole[f"all at {name}"] = layers
        for index in range(len(layers)):
            whole[f"all at {name}"] = shrunk(whole[f"all at {name}"], index, share)
    return {**one, **whole}


def student(layers: Layers) -> Student:
    """Untrained, the same every time."""
    torch.manual_seed(20)
    return Student(layers).eval()


def train(module: Student) -> float:
    """Train a little, the same way every time; returns test accuracy."""
    torch.manual_seed(67)
    train_images, test_images, train_labels, test_labels = images()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(_EPOCHS):
        module.train()
        for batch in torch.randperm(len(train_images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
    module.eval()
    with torch.no_grad():
        return float((module(test_images).argmax(1) == test_labels).float().mean())


def search(fleet: Fleet, device: str, share: float = 0.5, tell: Callable[[str], None] = lambda _: None) -> Found:
    """Search on a device, for at most that share of the teacher's latency."""

    def measure(layers: dict[str, Layers]) -> Table:
        made = {name: student(one) for name, one in layers.items()}
        students.update(made)
        return fleet.measure(made, device, ("latency_ms", "artifact_kb"), inputs=EXAMPLE, spec=SPEC, progress=tell)

    def trained(table: Table) -> list[tuple[float, str, float]]:
        """Accuracy, name and latency of those within the budget."""
        found = []
        for row in table.within(latency_ms=budget_ms).rows:
            found.append((train(students[row.candidate]), row.candidate, float(row["latency_ms"])))
            tell(f"{row.candidate}: {found[-1][0]:.1%} in {found[-1][2]:.3f} ms")
        return found

    students: dict[str, Student] = {}
    stage = removals(TEACHER)
    first = measure(stage)
    budget_ms = share * float(first.of("teacher").best("latency_ms")["latency_ms"])
    best = max(trained(first), default=None)
    base = best[1] if best else first.best("latency_ms").candidate
    second = measure({f"{base}, {what}": one for what, one in shrinkings(stage[base]).items()})
    accuracy, name, latency_ms = max([*([best] if best else []), *trained(second)])
    return Found(name, accuracy, latency_ms, budget_ms, (first, second), students)


def learn(found: Found) -> Predictor:
    """What the search measured, as a predictor."""
    rows = [row for table in found.tables for row in table.rows if row.measurement is not None]
    return fit([(row.measurement, work_of(student(found.students[row.candidate].layers), EXAMPLE)) for row in rows])


def main() -> None:
    """Search on the device that is named, or here."""
    device = sys.argv[1] if len(sys.argv) > 1 else "local"
    found = search(Fleet(), device, tell=lambda text: print(f"  {text}", file=sys.stderr))
    print(*found.tables, sep="\n")
    print(f"{found.name}: {found.accuracy:.1%} in {found.latency_ms:.3f} ms, of {found.budget_ms:.3f} ms")
    print(learn(found).describe())


if __name__ == "__main__":
    main()

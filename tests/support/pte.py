"""Makes tests/golden/pte: small models, each with one thing a session has to cope with.

Run as `python -m tests.support.pte` after a change of the toolchain.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from torch import Tensor, nn


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.constant_(self.linear.bias, 1.0)
        self.register_buffer("constant", torch.arange(3.0))
        self._function = function

    def forward(self, *args: Any) -> Any:
        return self._function(self, *args)


def _branch(module: _Function, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,))


def _save(
    path: Path,
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    *,
    dynamic: Any = None,
    planned: bool = True,
    partitioner: tuple[Any, ...] = (),
) -> None:
    program = torch.export.export(_Function(function).eval(), inputs, dynamic_shapes=dynamic)
    planning = MemoryPlanningPass(alloc_graph_input=planned, alloc_graph_output=planned)
    config = ExecutorchBackendConfig(memory_planning_pass=planning)
    lowered = to_edge_transform_and_lower(program, partitioner=list(partitioner)).to_executorch(config)
    path.write_bytes(lowered.buffer)


def _missing_operator(path: Path) -> None:
    library = torch.library.Library("ferryman_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.define("twice.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    library.impl("twice.out", lambda x, *, out: out.copy_(x * 2), "CompositeExplicitAutograd")
    _save(path, lambda _, x: torch.ops.ferryman_test.twice(x), (torch.ones(2),))


def make_models(folder: Path) -> None:
    """Write every model into `folder` as NAME.pte."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        _make_models(folder)


def _make_models(folder: Path) -> None:
    x, ids, mask = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    xnnpack = (XnnpackPartitioner(),)
    _save(folder / "linear.pte", lambda m, x: m.linear(x), (torch.ones(1, 4),), partitioner=xnnpack)
    _save(
        folder / "dynamic.pte",
        lambda m, x, ids, mask: (m.linear(x) + ids.to(torch.float32), ids + 1, torch.logical_not(mask)),
        (x, ids, mask),
        dynamic=((batch, batch, batch),),
        partitioner=xnnpack,
    )
    _save(folder / "unplanned.pte", lambda _, x, y: (x + y, x * y), (x, x.clone()), planned=False)
    _save(folder / "same.pte", lambda m, x: (x, m.constant, x + 1), (x,))
    _save(folder / "scalar.pte", lambda _, x: x.sum(), (x,))
    _save(folder / "branch.pte", _branch, (x,))
    dtypes = tuple(
        torch.ones(2, dtype=getattr(torch, name)) for name in ("uint8", "int8", "int16", "int32", "float16", "float64")
    )
    _save(folder / "dtypes.pte", lambda _, *xs: tuple(x + x for x in xs), dtypes)
    _save(folder / "bfloat16.pte", lambda _, x: x + x, (torch.ones(2, dtype=torch.bfloat16),))
    _save(folder / "integer.pte", lambda _, x, n: x + n, (x, 3))
    channels_last = torch.ones(1, 3, 4, 4).to(memory_format=torch.channels_last)
    _save(folder / "channels_last.pte", lambda _, x: x + 1, (channels_last,))
    _save(folder / "embedding.pte", lambda m, i: m.linear.weight[i], (torch.zeros(2, dtype=torch.int64),))
    _missing_operator(folder / "missing.pte")


if __name__ == "__main__":
    make_models(Path(__file__).parents[1] / "golden" / "pte")

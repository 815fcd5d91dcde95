"""Takes blocks out of a network, and has groups of those that stay share their weights.

Norms stay each block's own: FoldGPT trains them anew after sharing, they are what tells one depth from another, and
they are small. So do other scales and offsets that a module holds without any matrix. A bias goes with its weights,
since runtimes pack the two together. Batch norms are shared too: runtimes multiply them into the weights before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ferryman.converter.compress.binary_policy import Example
from ferryman.converter.fold.blocks import Blocks, first_tensor, like_output, run
from ferryman.runtime.contracts.errors import ModelError

_SAME = 1e-4
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  # the base of all


class Removed(nn.Module):
    """In the place of a block: gives its input, in the shape of the block's output."""

    def __init__(self, like: Any) -> None:  # noqa: ANN401  # a block's output
        super().__init__()
        rest = [] if isinstance(like, torch.Tensor) else [one for one in like if isinstance(one, torch.Tensor)][1:]
        if rest:
            raise ModelError("a block gives further tensors beside what it works on, and cannot be left out")
        none = torch.empty(0)
        self._like = like_output(like, none)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # whatever the block takes
        """The first tensor that it is given."""
        x = first_tensor(args, kwargs)
        assert x is not None  # noqa: S101  # find_blocks saw the block called with one
        return like_output(self._like, x)


def remove_blocks(model: nn.Module, blocks: Blocks, out: Sequence[int], example: Example) -> Blocks:
    """Take blocks out, in place; the list becomes shorter where the model computes the same with a shorter one.

    Where it counts its blocks, or pairs them with something else, modules without weights take their places.

    Args:
        model: it holds the blocks.
        blocks: in their list.
        out: indexes of those to go.
        example: positional inputs of one call.

    Returns:
        Those that stay.

    Raises:
        ModelError: the model works with neither.
    """
    if not out:
        return blocks
    with blocks.seen(lambda index, x, _: x if index in out else None):
        expected = run(model, example)
    container = model.get_submodule(blocks.path)
    before = dict(container._modules)  # noqa: SLF001  # assigning to a list would number them anew
    names = [blocks.names[index] for index in out]
    shorter = [one for name, one in before.items() if name not in names]
    counted = all(name.isdigit() for name in before)
    kept = [name for name in before if name not in names]
    _put(container, {str(at) if counted else kept[at]: one for at, one in enumerate(shorter)})
    if not _gives(model, example, expected):
        outputs = _outputs(model, container, before, blocks, example)
        _put(container, {name: Removed(outputs) if name in names else one for name, one in before.items()})
        if not _gives(model, example, expected):
            _put(container, before)
            raise ModelError(f"{blocks.path or 'the model'}: the model does not work without some of its blocks")
    there = {one: name for name, one in container._modules.items() if one is not None}  # noqa: SLF001
    stay = [one for index, one in enumerate(blocks.modules) if index not in out]
    return Blocks(blocks.path, tuple(there[one] for one in stay), tuple(stay))


def share_weights(blocks: Blocks, groups: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Have the blocks of each group hold one block's very parameters, but for their norms.

    Args:
        blocks: like ones.
        groups: index of the block whose weights all take, and those of all.
    """
    for seed, members in groups:
        for index in members:
            if index != seed:
                _take_weights(blocks.modules[index], blocks.modules[seed])


def _take_weights(block: nn.Module, seed: nn.Module) -> None:
    given = dict(seed.named_modules(remove_duplicate=False))
    for path, part in block.named_modules(remove_duplicate=False):
        if _own(part):
            continue
        for held in ("_parameters", "_buffers"):
            values = getattr(given[path], held)
            getattr(part, held).update({name: value for name, value in values.items() if value is not None})


def _own(part: nn.Module) -> bool:
    """Whether a module stays as it is: it holds no matrix."""
    several = list(part.parameters(recurse=False))
    return not isinstance(part, _BATCH_NORM) and all(one.dim() < 2 for one in several)  # noqa: PLR2004  # matrices


def _put(container: nn.Module, modules: dict[str, nn.Module | None]) -> None:
    container._modules.clear()  # noqa: SLF001  # torch has no public way to name them
    container._modules.update(modules)  # noqa: SLF001


def _gives(model: nn.Module, example: Example, expected: Sequence[torch.Tensor]) -> bool:
    try:
        found = run(model, example)
    except Exception:  # noqa: BLE001  # someone else's code, with fewer blocks than it knew
        return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=_SAME, atol=_SAME, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def _outputs(
    model: nn.Module, container: nn.Module, before: dict[str, nn.Module | None], blocks: Blocks, example: Example
) -> Any:  # noqa: ANN401  # a block's output
    """What a block gives."""
    _put(container, before)
    found: list[Any] = []
    hook = blocks.modules[0].register_forward_hook(lambda *given: found.append(given[-1]))
    try:
        run(model, example)
    finally:
        hook.remove()
    return found[0]

"""`fold`: a network of many blocks in, one of fewer blocks that share weights out, and what became of each block.

Source: Liu et al., FoldGPT: Simple and Effective Large Language Model Compression Scheme, 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.training import Batch, Loss, copy_model
from ferryman.converter.fold.blocks import Blocks, find_blocks
from ferryman.converter.fold.cure import cure
from ferryman.converter.fold.importance import Asked, least
from ferryman.converter.fold.recipe import Folding, check_folding, parse_folding
from ferryman.converter.fold.registry import find_importance
from ferryman.converter.fold.share import remove_blocks, share_weights
from ferryman.runtime.contracts.errors import CallerError

_PERCENT = 100
Say = Callable[[str], None]


@dataclass(frozen=True)
class Folded:
    """A network of fewer blocks, or of shared ones."""

    model: nn.Module
    """In eval mode."""
    folding: Folding
    decisions: tuple[Decision, ...]
    """Block by block."""
    losses: tuple[float, ...] = ()
    """Mean loss of each epoch of the cure."""


def fold(
    model: nn.Module,
    folding: str | Folding,
    *,
    example: Example,
    loader: Iterable[Batch] | None = None,
    blocks: str | None = None,
    epochs: int = 4,
    lr: float = 1e-3,
    loss: Loss = functional.cross_entropy,
    distil: bool = True,
    progress: Say = lambda _: None,
) -> Folded:
    """Remove the blocks that matter least, and have groups of those that stay share weights; the model is not changed.

    Each group takes the weights of that of its blocks which matters most; norms stay each block's own (see `share`).
    With a loader the folded network is then trained for a while (see `cure`).

    Args:
        model: trained; it has a list of like blocks.
        folding: the recipe or its name, such as `folded-3-drop25`.
        example: positional inputs of one call.
        loader: (inputs, targets) batches, every time it is iterated over; without one blocks matter by similarity, and
            no training follows.
        blocks: path of the list, where there are several, or of the first block, where one holds several kinds.
        epochs: of the cure.
        lr: learning rate of its first epoch.
        loss: of (outputs, targets).
        distil: learn from the model as it was as well.
        progress: told what begins.

    Raises:
        CallerError: no such recipe, no one list of blocks, more to share or remove than there is, or one of the
            arguments is not as said.
        ModelError: a block changes the shape of what it works on, or the model does not work without some.
    """
    recipe = check_folding(parse_folding(folding) if isinstance(folding, str) else folding)
    made = copy_model(model).eval()
    old, found = find_blocks(model, example, blocks), find_blocks(made, example, blocks)
    removed = _count(recipe, found)
    name = recipe.importance if loader is not None else "similar"
    progress(f"see how much each of {len(found)} blocks matters")
    importances = find_importance(name)(Asked(made, found, example, loader, loss, removed))
    out = least(importances, count=removed)
    stay = [index for index in range(len(found)) if index not in out]
    now = remove_blocks(made, found, out, example)
    groups = [range(at, min(at + recipe.group, len(stay))) for at in range(0, len(stay), recipe.group)]
    seeds = [max(group, key=lambda at: (importances[stay[at]], -at)) for group in groups]
    share_weights(now, list(zip(seeds, groups, strict=True)))
    losses: tuple[float, ...] = ()
    if loader is not None and not recipe.plain and epochs:
        progress("train the folded network")
        losses = cure(
            made, now, model, old, dict(enumerate(stay)), loader,
            epochs=epochs, lr=lr, loss=loss, distil=distil,
            progress=lambda epoch, epochs, loss: progress(f"epoch {epoch} of {epochs}: loss {loss:.4f}"),
        ).losses  # fmt: skip
    seed_of = {stay[at]: stay[seed] for seed, group in zip(seeds, groups, strict=True) for at in group}
    return Folded(made.eval(), recipe, _decisions(old, importances, seed_of, name), losses)


def _count(recipe: Folding, blocks: Blocks) -> int:
    """How many blocks to remove.

    Raises:
        CallerError: the recipe asks for what cannot be.
    """
    count = len(blocks)
    removed = round(count * recipe.drop / _PERCENT)
    if recipe.drop and not removed:
        raise CallerError(
            f"form {recipe.name}: {recipe.drop} percent of {count} blocks is less than half a block; "
            f"drop {-(-_PERCENT // (2 * count))} or more"
        )
    if removed >= count or (recipe.group > 1 and count - removed < 2):  # noqa: PLR2004  # to share between
        raise CallerError(f"form {recipe.name}: of {count} blocks {count - removed} would be left, too few")
    return removed


def _decisions(
    blocks: Blocks, importances: Sequence[float], seed_of: dict[int, int], name: str
) -> tuple[Decision, ...]:
    several = {seed for seed in seed_of.values() if list(seed_of.values()).count(seed) > 1}
    found = []
    for index, (path, module) in enumerate(zip(blocks.paths, blocks.modules, strict=True)):
        seed = seed_of.get(index)
        matters = f"importance {importances[index]:.3f} by {name}"
        if seed is None:
            decision = Decision(path, type(module).__name__, "removed", matters)
        elif seed != index:
            reason = f"shares the weights of {blocks.paths[seed]}, but for norms; {matters}"
            decision = Decision(path, type(module).__name__, "shared", reason)
        else:
            shared = "; its weights are its group's" if index in several else ""
            decision = Decision(path, type(module).__name__, "kept", matters + shared)
        found.append(decision)
    return tuple(found)

"""The blocks of someone's own network: lists of modules of one class whose weights have the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ferryman.converter.compress.binary_policy import Example, in_eval_mode
from ferryman.runtime.contracts.errors import CallerError, ModelError

_LEAST_PARTS = 2
"""Modules with weights in a block: fewer are a layer."""
See = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""Told a block's index, its input and its output; what it returns takes the output's place."""


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks in one list."""

    path: str
    """Of the list."""
    names: tuple[str, ...]
    """Of the blocks in it."""
    modules: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the blocks in the model."""
        return tuple(f"{self.path}.{name}".removeprefix(".") for name in self.names)

    @contextmanager
    def seen(self, see: See) -> Iterator[None]:
        """Show each block's input and output to a function, in calls of the model meanwhile."""
        hooks = [
            module.register_forward_hook(_hook(index, path, see), with_kwargs=True)
            for index, (module, path) in enumerate(zip(self.modules, self.paths, strict=True))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def find_blocks(model: nn.Module, example: Example, path: str | None = None) -> Blocks:
    """Find them.

    Args:
        model: someone's.
        example: positional inputs of one call.
        path: of the list, where there are several, or of the first block, where a list holds several kinds; None: the
            only ones.

    Raises:
        CallerError: there are several, none, or none of that path, or the model fails with the example.
        ModelError: a block's output has another shape than its input.
    """
    found = list(_lists(model))
    paths = [one.path for one in found]
    called = [one.paths[0] if paths.count(one.path) > 1 else one.path for one in found]
    there = ", ".join(
        f"{name or 'the model itself'} ({len(one)} {_kind(one)})" for name, one in zip(called, found, strict=True)
    )
    if not found:
        raise CallerError(
            "the model has no list of blocks (nn.ModuleList or nn.Sequential) in which two or more of one class have "
            "weights of the same shapes"
        )
    if path is not None:
        found = [one for name, one in zip(called, found, strict=True) if path in (name, one.paths[0])]
        if not found:
            raise CallerError(f"the model has no list of like blocks named {path!r}; there are: {there}")
    if len(found) > 1:
        raise CallerError(f"the model has several lists of blocks: {there}; name one (blocks={called[0]!r})")
    _check(model, example, found[0])
    return found[0]


def run(model: nn.Module, example: Example) -> list[torch.Tensor]:
    """The tensors that a model answers, in eval mode.

    Raises:
        CallerError: it fails with the example.
    """
    args = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    try:
        with in_eval_mode(model), torch.no_grad():
            return [one for one in tree_leaves(model(*args)) if isinstance(one, torch.Tensor)]
    except ModelError:
        raise
    except Exception as error:
        raise CallerError(
            f"the model fails with the example: {type(error).__name__}: {error}; "
            "give the positional inputs of one call, a tensor or a tuple"
        ) from error


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> torch.Tensor | None:
    """What a block works on: its first tensor."""
    several = (*args, *(kwargs or {}).values())
    return next((one for one in several if isinstance(one, torch.Tensor)), None)


def like_output(output: Any, value: torch.Tensor) -> Any:  # noqa: ANN401  # a block's
    """A block's output with another tensor in the place of its first."""
    if isinstance(output, torch.Tensor):
        return value
    at = next(index for index, one in enumerate(output) if isinstance(one, torch.Tensor))
    made = [value if index == at else one for index, one in enumerate(output)]
    return made if isinstance(output, list) else tuple(made)


def _hook(index: int, path: str, see: See) -> Callable[..., Any]:
    def hook(_: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:  # noqa: ANN401  # a block's
        x = first_tensor(args, kwargs)
        y = output if isinstance(output, torch.Tensor) else None
        if isinstance(output, tuple | list):
            y = first_tensor(output)
        if x is None or y is None or x.shape != y.shape:
            shapes = [None if one is None else list(one.shape) for one in (x, y)]
            raise ModelError(
                f"{path} makes {shapes[1]} of {shapes[0]}: only blocks that give a tensor of their input's shape can "
                "be folded"
            )
        found = see(index, x, y)
        return None if found is None else like_output(output, found)

    return hook


def _check(model: nn.Module, example: Example, blocks: Blocks) -> None:
    called: list[int] = []
    with blocks.seen(lambda index, *_: called.append(index)):
        run(model, example)
    if called != list(range(len(blocks))):
        raise ModelError(
            f"{blocks.path or 'the model'}: its blocks are called in the order {called} with the example; only those "
            "that are called once each, one after another, can be folded"
        )


def _lists(model: nn.Module) -> Iterator[Blocks]:
    """The outermost lists, one for each run of blocks that are alike."""
    inside: set[nn.Module] = set()
    for path, container in model.named_modules():
        if container in inside or not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        children = [(name, one) for name, one in container._modules.items() if one is not None]  # noqa: SLF001  # repeated ones too
        at = 0
        while at < len(children):
            end = at + 1
            while end < len(children) and _alike(children[at][1], children[end][1]):
                end += 1
            several = dict.fromkeys(one for _, one in children[at:end])
            if len(several) > 1 and len(several) == end - at:
                inside |= {part for one in several for part in one.modules()}
                yield Blocks(path, tuple(name for name, _ in children[at:end]), tuple(several))
            at = end


def _alike(one: nn.Module, other: nn.Module) -> bool:
    holders = [part for part in one.modules() if next(part.parameters(recurse=False), None) is not None]
    return type(one) is type(other) and len(holders) >= _LEAST_PARTS and _shapes(one) == _shapes(other)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in (*module.named_parameters(), *module.named_buffers())}


def _kind(blocks: Blocks) -> str:
    return type(blocks.modules[0]).__name__

"""LoRA (also as PEFT names it), Hydra and FLoRA: merged into a module, or written to a file that travels alone.

Both go through `ferryman.runtime.updates.adapters`, so what is converted and what a device merges are the same bits.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.updates.adapters import (
    Adapter,
    TensorAdapter,
    check,
    factor,
    merge_weight,
    sha256_of,
    write_adapters,
)

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PEFT = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")


def lora(layer: nn.Module, down: Any, up: Any, scale: float = 1.0) -> dict[str, Adapter]:  # noqa: ANN401  # tensor or array
    """LoRA: `weight + scale up @ down`.

    Args:
        layer: an nn.Linear or convolution of one group.
        down: [r, inputs], of a convolution [r, inputs, kernel...]: PEFT's `lora_A`.
        up: [outputs, r], or [outputs, r, 1, ...]: PEFT's `lora_B`.
        scale: alpha / r, as a rule.

    Returns:
        Name of a parameter of the layer -> its adapter.

    Raises:
        CallerError: the layer has no such adapters, or factors do not fit it.
    """
    factors = {"down": factor(_array(down)), "up": factor(_array(up))}
    return _checked({"weight": Adapter(kind="lora", shape=_shape(layer), scale=scale, factors=factors)})


def hydra(
    layer: nn.Module,
    parallel: tuple[Any, Any] | None,
    sequential: tuple[Any, Any],
    scale: float = 1.0,
    then_scale: float = 1.0,
) -> dict[str, Adapter]:
    """Hydra: a parallel branch beside the layer, and a sequential one on what it gives, bias and all.

    Args:
        layer: as `lora` takes it.
        parallel: (down, up) as `lora` takes them; None: there is none.
        sequential: (down [q, outputs], up [outputs, q]): `y + then_scale up @ down @ y`, of a convolution as 1x1 ones.
        scale: of the parallel branch.
        then_scale: of the sequential one.

    Returns:
        Name of a parameter of the layer -> its adapter.

    Raises:
        CallerError: as `lora`.
    """
    then = {"then_down": factor(_array(sequential[0])), "then_up": factor(_array(sequential[1]))}
    beside = {"down": factor(_array(parallel[0])), "up": factor(_array(parallel[1]))} if parallel else {}
    shape = _shape(layer)
    found = {
        "weight": Adapter(kind="hydra", shape=shape, scale=scale, then_scale=then_scale, factors=beside | then),
    }
    if layer.bias is not None:
        found["bias"] = Adapter(kind="hydra", shape=shape[:1], then_scale=then_scale, factors=then)
    return _checked(found)


def flora(layer: nn.Module, core: Any, sides: list[Any], scale: float = 1.0) -> dict[str, Adapter]:  # noqa: ANN401  # ditto
    """FLoRA: a small core of the weight's own dimensions, with one side [size, rank] for each of them.

    Returns:
        Name of a parameter of the layer -> its adapter.

    Raises:
        CallerError: as `lora`.
    """
    factors = {"core": factor(_array(core))} | {f"side{at}": factor(_array(one)) for at, one in enumerate(sides)}
    return _checked({"weight": Adapter(kind="flora", shape=_shape(layer), scale=scale, factors=factors)})


def from_peft(model: nn.Module, state: Mapping[str, torch.Tensor], alpha: float) -> dict[str, Adapter]:
    """LoRA of a PEFT checkpoint: `...PATH.lora_A.weight` and `...PATH.lora_B.weight`.

    Args:
        model: the base, in whose paths the checkpoint speaks.
        state: of the checkpoint.
        alpha: its `lora_alpha`; each layer's scale is that over its rank.

    Returns:
        Name of a parameter of the model -> its adapter.

    Raises:
        CallerError: something in it is no LoRA of a layer of the model.
    """
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        found = _PEFT.fullmatch(name)
        if found is None:
            raise CallerError(
                f"{name} is no LoRA factor as PEFT names them (PATH.lora_A.weight); merge it in the model"
            )
        sides.setdefault(found["path"], {})[found["side"]] = value
    adapters: dict[str, Adapter] = {}
    for path, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise CallerError(f"{path} has lora_{'A'.join(pair)} alone; both factors make a change")
        layer = _layer(model, path)
        made = lora(layer, pair["A"], pair["B"], alpha / len(pair["A"]))
        adapters |= {f"{path}.{name}": one for name, one in made.items()}
    return adapters


def merge(model: nn.Module, adapters: Mapping[str, Adapter]) -> nn.Module:
    """A copy of the model with adapters in its weights: it converts like any other, and costs nothing at inference.

    Args:
        model: the base, in float32.
        adapters: by name of a parameter, such as `classifier.weight`.

    Raises:
        CallerError: there is no such parameter, it is not float32, or an adapter does not fit it.
    """
    merged = copy.deepcopy(model)
    parameters = dict(merged.named_parameters())
    with torch.no_grad():
        for name, weight in _weights(model, adapters).items():
            parameters[name].copy_(torch.from_numpy(merge_weight(weight, adapters[name])))
    return merged


def save_adapters(path: Path | str, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Write a file for `ferryman publish --adapter`, with hashes of the weights that the adapters belong to.

    Raises:
        CallerError: as `merge`.
    """
    weights = _weights(model, adapters)
    write_adapters(
        Path(path),
        {name: TensorAdapter(adapter=adapters[name], base_sha256=sha256_of(one)) for name, one in weights.items()},
    )


def _weights(model: nn.Module, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    parameters = dict(model.named_parameters())
    found = {}
    for name, one in adapters.items():
        if name not in parameters:
            raise CallerError(f"the model has no parameter {name}; it has {', '.join(list(parameters)[:20])}")
        weight = parameters[name].detach().cpu()
        if weight.dtype != torch.float32 or tuple(weight.shape) != one.shape:
            raise CallerError(
                f"{name} is {weight.dtype} of {tuple(weight.shape)}; its adapter is of float32 {one.shape}"
            )
        found[name] = weight.numpy()
    return found


def _layer(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CallerError(f"the model has no layer {path}: {error}") from error


def _shape(layer: nn.Module) -> tuple[int, ...]:
    if not isinstance(layer, _LAYERS) or getattr(layer, "groups", 1) != 1:
        raise CallerError(
            f"adapters are of nn.Linear and of convolutions in one group, found {layer}; merge it in the model"
        )
    return tuple(layer.weight.shape)


def _checked(adapters: dict[str, Adapter]) -> dict[str, Adapter]:
    for name, one in adapters.items():
        for reason in check(one):
            raise CallerError(f"{name}: {reason}")
    return adapters


def _array(given: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401  # ditto
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    return np.asarray(given)

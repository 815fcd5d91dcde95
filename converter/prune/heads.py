"""Attention in an arbitrary model: which outputs of which layer each head's queries, keys and values are.

A head's numbers are found by sending channel numbers, in place of the layer's outputs, through whatever moves data
between the layer and the attention: views, permutations, splits, selections. Nothing hangs on how the code is written.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.fx import Node

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
_MATMULS = (aten.matmul.default, aten.bmm.default)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)  # noqa: SLF001  # as the operator is called
_SAME = {
    *(aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.alias.default, aten.detach.default),
    *(aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.detach_.default),  # noqa: SLF001  # ditto
}
"""Give their input, as far as channel numbers go."""
_MOVES = {
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default),  # noqa: SLF001  # ditto
    *(aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.chunk.default, aten.unbind.int, aten.expand.default, aten.squeeze.dim, aten.unsqueeze.default),
    *(aten.flatten.using_ints, aten.unflatten.int, aten.repeat_interleave.self_int, operator.getitem),
}
_SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_BETWEEN = {
    *(*_SCALES, aten.add.Tensor, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self),
    *(aten.where.ScalarOther, aten.add_.Tensor, aten.mul_.Tensor, aten.clamp_min.default),
}
"""What may stand between scores and their softmax."""
Numbers = tuple[tuple[int, ...], ...]
"""Head -> the channel of each of its numbers."""


@dataclass(frozen=True)
class Ends:
    """Channels of a layer that are one side of an attention."""

    path: str
    channels: Numbers


@dataclass(frozen=True)
class Attention:
    """One attention and the layers around it."""

    q: Ends
    k: Ends
    v: Ends
    out: Ends
    """Inputs of the layer that reads what the heads give."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths, each once."""
        return tuple(dict.fromkeys(one.path for one in (self.q, self.k, self.v, self.out)))


def find_attention(program: torch.export.ExportedProgram) -> tuple[list[Attention], dict[str, str]]:
    """Every attention whose heads can be told, and module path -> why those of another cannot."""
    inputs = program.graph_signature.input_specs
    owners = {
        one.arg.name: str(one.target).rpartition(".")[0] for one in inputs if one.target and "weight" in one.target
    }
    found, refused = [], {}
    for node in program.graph.nodes:
        sides = _sides(node)
        if sides is None:
            continue
        try:
            found.append(_read(*sides, owners))
        except _Unreadable as error:
            refused[_place(node)] = str(error)
    return found, refused


class _Unreadable(Exception):
    """Why an attention's heads cannot be told."""


def _place(node: Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _sides(node: Node) -> tuple[Node, Node, Node, Node, int] | None:
    """Queries, keys, values, what comes of them, and the keys' dimension of channels."""
    if node.target == _SDPA:
        q, k, v = node.args[:3]
        return (q, k, v, node, -1) if isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node) else None
    if node.target not in _SOFTMAXES:
        return None
    scores = node.args[0]
    while isinstance(scores, Node) and scores.target in {*_BETWEEN, *_SAME}:
        tensors = [one for one in scores.args if isinstance(one, Node)]
        deep = [one for one in tensors if one.meta["val"].shape == scores.meta["val"].shape and _reaches_product(one)]
        scores = deep[0] if deep else None
    weights: Node = node
    while len(weights.users) == 1 and next(iter(weights.users)).target in _SAME:
        (weights,) = weights.users
    users = list(weights.users)
    if not isinstance(scores, Node) or scores.target not in _MATMULS or len(users) != 1:
        return None
    product = users[0]
    q, k, v = *scores.args[:2], product.args[1] if product.target in _MATMULS else None
    if not (isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)) or product.args[0] is not weights:
        return None
    return q, k, v, product, -2


def _reaches_product(node: Node) -> bool:
    while node.target in {*_BETWEEN, *_SAME}:
        tensors = [one for one in node.args if isinstance(one, Node)]
        if not tensors:
            return False
        node = tensors[0]
    return node.target in _MATMULS


def _read(q: Node, k: Node, v: Node, result: Node, keys_dim: int, owners: dict[str, str]) -> Attention:
    ends = [_back(side, dim, owners) for side, dim in ((q, -1), (k, keys_dim), (v, -1))]
    heads = {len(one.channels) for one in ends}
    if len(heads) != 1 or len(ends[0].channels[0]) != len(ends[1].channels[0]):
        raise _Unreadable("its queries, keys and values are not of as many heads")
    q_ends, k_ends, v_ends = ends
    return Attention(q_ends, k_ends, v_ends, _forth(result, len(ends[2].channels), len(ends[2].channels[0]), owners))


def _back(side: Node, dim: int, owners: dict[str, str]) -> Ends:
    """Follow one side back to its layer, and bring the layer's channel numbers forth."""
    chain: list[Node] = []
    node = side
    while node.target != aten.linear.default:
        inputs = [one for one in node.args if isinstance(one, Node)]
        if node.target not in {*_SAME, *_MOVES, *_SCALES} or len(inputs) != 1:
            raise _Unreadable(f"{_name(node)} stands between a linear layer and the attention")
        chain.append(node)
        node = inputs[0]
    shape = node.meta["val"].shape
    numbers = torch.arange(shape[-1]).expand(shape)
    return Ends(_owner(node, owners), _heads(_send(numbers, chain[::-1]).movedim(dim, -1)))


def _forth(result: Node, heads: int, each: int, owners: dict[str, str]) -> Ends:
    """Follow what comes of an attention to the layer that reads it: its inputs, head by head."""
    shape = result.meta["val"].shape
    numbers = torch.arange(heads * each).reshape(*_leading(shape, heads), 1, each).expand(shape)
    chain: list[Node] = []
    node = result
    while True:
        if len(node.users) != 1:
            raise _Unreadable("what it gives is read more than once")
        (node,) = node.users
        if node.target == aten.linear.default:
            break
        if node.target not in {*_SAME, *_MOVES}:
            raise _Unreadable(f"{_name(node)} stands between the attention and the next linear layer")
        chain.append(node)
    given = _send(numbers, chain).flatten(0, -2)
    if not bool((given == given[:1]).all()):
        raise _Unreadable("heads are not told apart by channel where the next linear layer reads them")
    where = {int(number): channel for channel, number in enumerate(given[0])}
    if len(where) != heads * each or given.shape[1] != len(where):
        raise _Unreadable("the next linear layer does not read each of the heads' numbers once")
    channels = tuple(tuple(where[head * each + one] for one in range(each)) for head in range(heads))
    return Ends(_owner(node, owners), channels)


def _leading(shape: Sequence[int], heads: int) -> tuple[int, ...]:
    """The shape of one number a head, to be spread over the batch: [1, ..., heads]; a batch of heads has no more."""
    return (*[1] * (len(shape) - 3), heads) if shape[-3] == heads else (*[1] * (len(shape) - 3), shape[-3])


def _heads(numbers: torch.Tensor) -> Numbers:
    """[..., heads, length, channels] -> the channels of each head."""
    if numbers.dim() < 4:  # noqa: PLR2004  # batch, heads, length, channels
        raise _Unreadable("it has no dimension of heads")
    flat = numbers.flatten(0, -4)
    if not bool((flat == flat[:1, :, :1]).all()):
        raise _Unreadable("heads are not told apart by channel")
    return tuple(tuple(int(one) for one in row) for row in flat[0, :, 0])


def _send(value: torch.Tensor, chain: Sequence[Node]) -> torch.Tensor:
    for node in chain:
        if node.target in _MOVES:
            value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]  # an operator
    return value


def _owner(node: Node, owners: dict[str, str]) -> str:
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.name not in owners:
        raise _Unreadable("a linear layer's weights are computed")
    return owners[weight.name]


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.")


def common_place(paths: Sequence[str]) -> str:
    """Path of the innermost module that holds all of some."""
    parts = [path.split(".")[:-1] for path in paths]
    shared: list[str] = []
    for several in zip(*parts, strict=False):
        if any(one != other for one, other in pairwise(several)):
            break
        shared.append(several[0])
    return ".".join(shared)


class HeadAttention(nn.Module):
    """What `nn.MultiheadAttention` computes, of layers from which heads can be taken.

    Takes and gives what it does; the weights, averaged over heads, when asked for.
    """

    def __init__(self, dense: nn.MultiheadAttention) -> None:
        """Take over the weights.

        Args:
            dense: without bias_k, add_zero_attn and the like.
        """
        super().__init__()
        self.num_heads, self.head_width = dense.num_heads, dense.head_dim
        self.dropout, self.batch_first = dense.dropout, dense.batch_first
        # nn.TransformerEncoderLayer looks at these before it calls: it must not take its fused path.
        self._qkv_same_embed_dim, self.in_proj_bias, self.in_proj_weight = False, None, None
        self.forgotten = 0
        """Numbers of what it gives, once its layers are gone; 0: they are there."""
        together: torch.Tensor | None = dense.in_proj_weight  # None where keys have another width
        apart = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight)
        weights = [one.detach() for one in apart] if together is None else together.detach().chunk(3)
        biases = [None] * 3 if dense.in_proj_bias is None else dense.in_proj_bias.detach().chunk(3)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.out = _linear(dense.out_proj.weight.detach(), dense.out_proj.bias)
        self.train(dense.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002  # the mask says so as well
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `nn.MultiheadAttention`, of [batch, length, width], or [length, batch, width] without batch_first."""
        if self.forgotten:
            return torch.zeros(*query.shape[:-1], self.forgotten, dtype=query.dtype), None
        turn = not self.batch_first and query.dim() == 3  # noqa: PLR2004  # a batch
        q, k, v = (
            self._split(layer(one.transpose(0, 1) if turn else one))
            for layer, one in ((self.q, query), (self.k, key), (self.v, value))
        )
        mask = _merge(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: torch.Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_width**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            given = nn.functional.dropout(weights, dropout) @ v
            weights = weights.mean(-3) if average_attn_weights else weights
        else:
            given = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        given = self.out(given.transpose(-3, -2).flatten(-2))
        return (given.transpose(0, 1) if turn else given), weights

    def forget(self) -> None:
        """Give zeros from now on, without the layers."""
        self.forgotten = self.out.out_features
        del self.q, self.k, self.v, self.out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_width).transpose(-3, -2)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def _merge(mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """One mask to be added to scores; what is true in a mask of bools is not looked at."""
    found = None
    for one in (mask, None if padding is None else padding[:, None, None, :]):
        if one is None:
            continue
        added = (
            torch.zeros(one.shape, dtype=q.dtype).masked_fill(one, float("-inf")) if one.dtype == torch.bool else one
        )
        if one is mask and one.dim() == 3:  # noqa: PLR2004  # [batch * heads, length, length]
            added = added.reshape(q.shape[0], -1, *added.shape[1:])
        found = added if found is None else found + added
    return found


def open_attention(model: nn.Module) -> dict[str, str]:
    """Put a module of plain layers in the place of every `nn.MultiheadAttention`, in place.

    Returns:
        Path -> what became of it.
    """
    done = {}
    for path, part in list(model.named_modules()):
        if type(part) is not nn.MultiheadAttention:
            continue
        if part.bias_k is not None or part.add_zero_attn or not path:
            done[path] = "it has a bias of keys, or adds a key of zeros: its heads stay"
            continue
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, HeadAttention(part))
        done[path] = "replaced by plain linear layers, from which heads can be taken"
    return done

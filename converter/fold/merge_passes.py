"""What `merge` does to a graph: each pass finds one thing, does it, and is asked again until it finds none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ferryman.converter.affine import read_affine
from ferryman.converter.fold.linear_ops import (
    Map,
    chained,
    is_float,
    name_of,
    put_map,
    read_map,
    scaled_after,
    scaled_before,
    scaled_identity,
    sizes,
    summed,
)
from ferryman.converter.layer_calls import path_of
from ferryman.converter.recognise import Constants, attribute

aten = torch.ops.aten
Affine = tuple[torch.Tensor, torch.Tensor]
PART_OF = "part of "
_LARGEST_BYTES = 1 << 20
"""Of a computed constant that may be larger than what it is computed from."""
_VIEWS = (
    *(aten.view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.alias, aten.detach),
    *(aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select),
)
"""Of these nothing is computed, and they keep a shared tensor shared."""
_NOTHING = (aten.dropout.default, aten.alias.default, aten.detach.default, aten.contiguous.default, aten.clone.default)


@dataclass
class Graph:
    """A program under way."""

    module: GraphModule
    constants: Constants
    merged: dict[str, str] = field(default_factory=dict)
    """Module path -> what became of it."""

    @classmethod
    def of(cls, module: GraphModule) -> Graph:
        """Begin."""
        return cls(module, Constants(module))

    def maps(self) -> Iterator[Map]:
        """Layers whose weights nothing else reads, in order."""
        nodes = list(self.module.graph.nodes)
        held = {node: attribute(self.module, str(node.target)) for node in nodes if node.op == "get_attr"}
        readers: Counter[int] = Counter()
        for node, value in held.items():
            if isinstance(value, torch.Tensor):
                readers[value.data_ptr()] += len(node.users)
        for node in nodes:
            one = read_map(node, self.constants)
            behind = list(_behind(node)) if one is not None else []
            shared = any(readers[held[at].data_ptr()] > 1 if at in held else len(at.users) > 1 for at in behind)
            if one is not None and not shared:
                yield one

    def affine(self, node: Node, x: Node, channels: int, axis: int) -> Affine | None:
        """What a node multiplies each channel of a value by, and then adds."""
        if not is_float(node) or x not in node.args or sizes(node) != sizes(x):
            return None
        found = read_affine(node, x, channels, axis, self.constants)
        if found is None or not all(bool(one.isfinite().all()) for one in found):
            return None
        return found

    def tell(self, node: Node, what: str) -> None:
        """Note what became of the module that a node came from."""
        if node.meta.get("nn_module_stack"):
            self.merged.setdefault(path_of(node), what)

    def clean(self) -> None:
        """Drop what nothing uses."""
        self.module.graph.eliminate_dead_code()


def _behind(node: Node) -> Iterator[Node]:
    """What a layer's weights are held by, and computed through."""
    open_nodes = [one for one in node.args[1:3] if isinstance(one, Node)]
    while open_nodes:
        at = open_nodes.pop()
        open_nodes += at.all_input_nodes
        yield at


def compute_constants(graph: Graph) -> bool:
    """What depends on no input is computed once."""
    for node in graph.module.graph.nodes:
        if node.op == "get_attr" or node not in graph.constants or _is_view(node):
            continue
        if all(user in graph.constants and not _is_view(user) for user in node.users):
            continue  # what is computed from it is
        value = graph.constants[node]
        held = sum(graph.constants[one].nbytes for one in node.all_input_nodes)
        if value.nbytes > max(held, _LARGEST_BYTES):
            continue
        name = f"computed_{sum(1 for _ in graph.module.buffers())}"
        graph.module.register_buffer(name, value.detach().contiguous().clone())
        with graph.module.graph.inserting_before(node):
            made = graph.module.graph.get_attr(name)
        made.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(made)
        graph.clean()
        return True
    return False


def _is_view(node: Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in _VIEWS


def drop_identities(graph: Graph) -> bool:
    """What gives its input as it is goes, and what is multiplied by 0 and then added."""
    for node in graph.module.graph.nodes:
        kept = _unchanged(graph, node)
        if kept is not None and kept.meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(kept)
            graph.tell(node, "does nothing")
            graph.module.graph.erase_node(node)  # a dropout would stay otherwise
            graph.clean()
            return True
    return False


def _unchanged(graph: Graph, node: Node) -> Node | None:
    """The operand that a node gives as it is; None where it gives something else."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node) or node in graph.constants:
        return None
    if _does_nothing(graph, node):
        return node.args[0]
    if node.target == aten.add.Tensor and not node.kwargs:
        first, second = node.args[:2]
        for zero, kept in ((first, second), (second, first)):
            if isinstance(zero, Node) and isinstance(kept, Node) and _is_zero(graph, zero):
                return kept if sizes(kept) == sizes(node) else None
    for x in dict.fromkeys(one for one in node.all_input_nodes if one not in graph.constants):
        if is_float(x) and len(sizes(x)) > 1:
            found = graph.affine(node, x, sizes(x)[1], 1)
            if found is not None and bool((found[0] == 1).all()) and not bool(found[1].any()):
                return x
    return None


def _does_nothing(graph: Graph, node: Node) -> bool:
    """Whether it is an operator that gives its first operand."""
    args: list[Any] = list(node.args)
    if node.target in _NOTHING:
        return not node.kwargs and (node.target != aten.dropout.default or not args[2])
    if node.target == aten.leaky_relu.default:
        return len(args) > 1 and args[1] == 1
    known = node.target == aten.prelu.default and args[1] in graph.constants
    return known and bool((graph.constants[args[1]] == 1).all())


def _is_zero(graph: Graph, node: Node) -> bool:
    """Whether something finite is multiplied by 0."""
    if node.target != aten.mul.Tensor:
        return False
    several = [one if not isinstance(one, Node) else graph.constants[one] for one in node.args if _known(graph, one)]
    return any(bool((torch.as_tensor(one) == 0).all()) for one in several)


def _known(graph: Graph, one: object) -> bool:
    return isinstance(one, int | float) or (isinstance(one, Node) and one in graph.constants)


def scale_after(graph: Graph) -> bool:
    """Batch norms, scales and offsets that follow a layer become part of it."""
    changed = False
    for one in graph.maps():
        user = _only_user(one.node)
        found = None if user is None else graph.affine(user, one.node, len(one.weight), one.axis)
        if user is None or found is None:
            continue
        made = scaled_after(one, *found)
        if bool(made.weight.isfinite().all() and made.bias.isfinite().all()):
            graph.tell(user, f"{PART_OF}{name_of(one)}")
            put_map(graph.module, made, user)
            changed = True
    return changed


def scale_before(graph: Graph) -> bool:
    """Those ahead of layers become part of these, where nothing else reads them."""
    readers = {one.node: one for one in graph.maps()}
    for node in graph.module.graph.nodes:
        if node.op != "call_function" or not node.users or not set(node.users) <= readers.keys():
            continue
        taking = [readers[user] for user in node.users]
        made = _scaled(graph, node, taking)
        if made is not None:
            graph.tell(node, PART_OF + ", ".join(name_of(one) for one in taking))
            for one in made:
                put_map(graph.module, one, one.node)
            return True
    return False


def _scaled(graph: Graph, node: Node, taking: list[Map]) -> list[Map] | None:
    axes = {1 if one.dims else len(sizes(node)) - 1 for one in taking}
    for x in (one for one in node.args if isinstance(one, Node) and one not in graph.constants):
        if len(axes) > 1 or not is_float(x) or any(one.x is not node for one in taking):
            return None
        if sizes(x) != sizes(node):
            continue
        (axis,) = axes
        found = graph.affine(node, x, sizes(x)[axis], axis)
        made = [None if found is None else scaled_before(one, *found) for one in taking]
        if all(one is not None for one in made):
            return [replace(one, x=x) for one in made if one is not None]
    return None


def chain(graph: Graph) -> bool:
    """Two layers with nothing between them become one."""
    several = {one.node: one for one in graph.maps()}
    for second in several.values():
        first = several.get(second.x)
        if first is None or _only_user(first.node) is not second.node:
            continue
        made = chained(first, second)
        if made is not None:
            graph.tell(first.node, f"{PART_OF}{name_of(second)}")
            put_map(graph.module, made, second.node)
            return True
    return False


def join_branches(graph: Graph) -> bool:
    """Layers of one value, it itself and its scales, all added up, become one layer."""
    several = {one.node: one for one in graph.maps()}
    for end in reversed(graph.module.graph.nodes):
        if not _is_sum(end) or any(_is_sum(user) and _only_user(end) is user for user in end.users):
            continue
        leaves = list(_leaves(end))
        for x in dict.fromkeys(several[leaf].x for leaf in leaves if leaf in several):
            found = _joined(graph, leaves, x, several)
            if found is not None:
                _put_sum(graph, end, leaves, *found)
                return True
    return False


def _is_sum(node: Node) -> bool:
    both = [one for one in node.args if isinstance(one, Node)]
    return (
        node.target == aten.add.Tensor
        and not node.kwargs
        and len(both) == 2  # noqa: PLR2004  # operands
        and is_float(node)
        and all(is_float(one) and sizes(one) == sizes(node) for one in both)
    )


def _leaves(end: Node) -> Iterator[Node]:
    for one in end.args:
        assert isinstance(one, Node)  # noqa: S101  # _is_sum looked
        if _is_sum(one) and len(one.users) == 1:
            yield from _leaves(one)
        else:
            yield one


def _joined(graph: Graph, leaves: list[Node], x: Node, several: dict[Node, Map]) -> tuple[Map, list[Node]] | None:
    """One map for as many of a sum's leaves as gain by it, and these."""
    layers = [several[one] for one in leaves if one in several and several[one].x is x and len(one.users) == 1]
    layers.sort(key=lambda one: -one.weight.numel())
    if not layers or len(set(leaves)) < len(leaves):
        return None
    whole = layers[0]
    taken, work = [whole.node], whole.multiplications()
    others: list[tuple[Node, Map | None, int]] = [(one.node, one, one.multiplications()) for one in layers[1:]]
    for leaf in leaves:
        scales = _scales(graph, leaf, x, whole.axis)
        if scales is not None:
            others.append((leaf, scaled_identity(whole, *scales), 0))
    for leaf, one, own in others:
        both = None if one is None else summed([whole, one])
        if both is not None and both.multiplications() <= work + own:
            whole, work = both, work + own
            taken.append(leaf)
    return (whole, taken) if len(taken) > 1 else None


def _scales(graph: Graph, leaf: Node, x: Node, axis: int) -> Affine | None:
    channels = sizes(x)[axis] if axis < len(sizes(x)) else 0
    if leaf is x:
        return torch.ones(channels), torch.zeros(channels)
    return graph.affine(leaf, x, channels, axis) if len(leaf.users) == 1 and x in leaf.args else None


def _put_sum(graph: Graph, end: Node, leaves: list[Node], whole: Map, taken: list[Node]) -> None:
    for leaf in taken:
        if leaf is not whole.node and leaf is not whole.x:
            graph.tell(leaf, f"{PART_OF}{name_of(whole)}")
    put_map(graph.module, whole, end, [one for one in leaves if one not in taken])


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


PASSES: tuple[Callable[[Graph], bool], ...] = (
    drop_identities,
    scale_after,
    scale_before,
    chain,
    join_branches,
    compute_constants,
)
"""In this order, over again until none finds anything."""

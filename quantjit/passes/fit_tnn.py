"""Say in TNN's words what another format says in its own; the network computes the same.

TNN has one pad for both sides of a convolution or pooling: others become "same" padding where that
is what they are, else a layer that pads before it.  An average that counts padding pads before it
too.  Names lose the characters that a ``.tnnproto`` cannot hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantjit.errors import GraphError
from quantjit.executor import infer_shapes
from quantjit.formats.tnn import knows
from quantjit.graph import Graph, Node
from quantjit.ops import Shape
from quantjit.ops.shape import PadAttrs

_LOWEST = float(np.finfo(np.float32).min)
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network that TNN can express, and what had to be said otherwise, in words."""

    graph: Graph
    notes: tuple[str, ...]


def fit_tnn(graph: Graph) -> Fitted:
    """Return the network as TNN can hold it.

    Raises GraphError that names every layer which TNN does not have.
    """
    unknown = [node for node in graph.nodes if not knows(node.op)]
    if unknown:
        listed = ", ".join(f"{node.name!r} ({node.op})" for node in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise GraphError("network", f"TNN has no layer for {listed}{more}")
    graph, renamed = _renamed(graph)
    shapes = infer_shapes(graph)
    same: list[str] = []
    padded: list[str] = []
    nodes: list[Node] = []
    for node in graph.nodes:
        found = _fit_pads(node, shapes)
        if len(found) > 1:
            padded.append(node.name)
        elif found[0] is not node:
            same.append(node.name)
        nodes += found
    notes = []
    if renamed:
        notes.append(f"names that TNN cannot hold are changed: {_listed(renamed)}")
    if same:
        notes.append(f'one-sided pads are written as "same" padding: {_listed(same)}')
    if padded:
        notes.append(f"pads that TNN cannot hold become layers of their own: {_listed(padded)}")
    return Fitted(graph.with_nodes(tuple(nodes)), tuple(notes))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# ------------------------------------------------------------------ names


def _renamed(graph: Graph) -> tuple[Graph, list[str]]:
    blobs = {name: name for name in (*graph.blobs(), *graph.constants, *graph.outputs)}
    nodes = {node.name: node.name for node in graph.nodes}
    inputs = {blob.name for blob in graph.inputs}
    changed: list[str] = []
    for names in (blobs, nodes):
        taken = set(names)
        for name in list(names):
            extra = ":" if names is blobs and name in inputs else ""
            fitting = "".join("_" if _is_bad(char, extra) else char for char in name) or "_"
            if fitting != name:
                while fitting in taken:
                    fitting += "_"
                taken.add(fitting)
                names[name] = fitting
                changed.append(name)
    if not changed:
        return graph, []

    def new(listed: Sequence[str]) -> tuple[str, ...]:
        return tuple(blobs[name] for name in listed)

    made = replace(
        graph,
        nodes=tuple(
            replace(
                node,
                name=nodes[node.name],
                inputs=new(node.inputs),
                outputs=new(node.outputs),
            )
            for node in graph.nodes
        ),
        inputs=tuple(replace(blob, name=blobs[blob.name]) for blob in graph.inputs),
        outputs=new(graph.outputs),
        constants={blobs[name]: array for name, array in graph.constants.items()},
    )
    return made, changed


def _is_bad(char: str, extra: str) -> bool:
    return char in f',"\0{extra}' or char <= " " or char.isspace()


# ------------------------------------------------------------------ pads


def _fit_pads(node: Node, shapes: Mapping[str, Shape]) -> list[Node]:
    if node.op not in ("convolution", "deconvolution", "pooling"):
        return [node]
    attrs = node.attrs
    if attrs.pad_mode != "explicit":
        return [node]
    top, bottom, left, right = attrs.pads
    counted = node.op == "pooling" and attrs.kind == "average" and attrs.count_include_pad
    if (top, left) == (bottom, right) and not (counted and any(attrs.pads)):
        return [node]
    if node.op == "deconvolution":
        raise GraphError(
            f"node {node.name!r}", f"TNN has no deconvolution with one-sided pads {attrs.pads}"
        )
    shape, out = shapes[node.inputs[0]], shapes[node.outputs[0]]
    if node.op == "convolution" and attrs.pads == _same_pads(node, shape):
        return [replace(node, attrs=replace(attrs, pad_mode="same", pads=(0, 0, 0, 0)))]
    return _with_pad_layer(node, out)


def _same_pads(node: Node, shape: Shape) -> tuple[int, int, int, int]:
    attrs = node.attrs
    pads: list[int] = []
    for size, kernel, stride, dilation in (
        (shape[2], attrs.kernel_h, attrs.stride_h, attrs.dilation_h),
        (shape[3], attrs.kernel_w, attrs.stride_w, attrs.dilation_w),
    ):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


def _with_pad_layer(node: Node, out: Shape) -> list[Node]:
    attrs = node.attrs
    if node.op == "pooling" and (attrs.ceil_mode or 0 in (attrs.kernel_h, attrs.kernel_w)):
        raise GraphError(
            f"node {node.name!r}", f"TNN has no such pooling with pads {attrs.pads}: {out[2:]}"
        )
    is_average = node.op == "pooling" and attrs.kind == "average"
    if is_average and not attrs.count_include_pad:
        raise GraphError(
            f"node {node.name!r}", f"TNN has no average over one-sided pads {attrs.pads}"
        )
    value = _LOWEST if node.op == "pooling" and not is_average else 0.0
    top, bottom, left, right = attrs.pads
    blob = f"{node.inputs[0]}:{node.name}:padded"
    pad = Node(
        f"{node.name}:pad",
        "pad",
        node.inputs[:1],
        (blob,),
        PadAttrs((0, 0, top, left), (0, 0, bottom, right), "constant", value),
    )
    changes: dict[str, object] = {"pads": (0, 0, 0, 0)}
    if node.op == "pooling":
        changes["count_include_pad"] = False
    bare = replace(node, inputs=(blob, *node.inputs[1:]), attrs=replace(attrs, **changes))
    return [pad, bare]

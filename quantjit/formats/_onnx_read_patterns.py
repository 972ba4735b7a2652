"""Exported idioms put back together: batch norm into its convolution, SiLU, Mish, GELU, biases.

An exporter writes one layer as several nodes; as one it is quantized better and said in TNN's
words.  A rewrite happens only where nothing else reads what lies between; its node writes the blob
of the last node that it replaces, whose name it has too, unless it is a layer with weights that
takes something in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isclose, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from quantjit.graph import Graph, Node, readonly
from quantjit.ops import NoAttrs
from quantjit.ops.activation import HardAttrs
from quantjit.ops.curves import CurveAttrs

_LAYERS = ("convolution", "deconvolution", "inner_product")
_CLOSE = 1e-3  # relative: constants of idioms are written with few digits


def simplify(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """Return the network with its idioms put together; it computes the same.

    shapes: of its blobs.
    """
    net = _Net(graph, shapes)
    for rewrites in (_IDIOMS, _FOLDS):  # first what looks at single constants
        for name in list(net.nodes):
            for op, rewrite in rewrites:
                node = net.nodes.get(name)
                if node is not None and node.op == op:
                    rewrite(net, node)
    return graph.with_nodes(tuple(net.nodes.values()))


class _Net:
    """The nodes while they are rewritten, in order, with who writes and who reads a blob."""

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.nodes = {node.name: node for node in graph.nodes}
        self.writer = {blob: node.name for node in graph.nodes for blob in node.outputs}
        self.readers: dict[str, list[str]] = {}
        self.outputs = set(graph.outputs)
        for node in graph.nodes:
            self._enter(node)

    def _enter(self, node: Node) -> None:
        for blob in dict.fromkeys(node.inputs):
            self.readers.setdefault(blob, []).append(node.name)

    def source(self, blob: str, *readers: Node) -> Node | None:
        """Return the node that writes a blob, if nothing but `readers` reads it."""
        name = self.writer.get(blob)
        strangers = set(self.readers[blob]) - {reader.name for reader in readers}
        if name is None or strangers or blob in self.outputs:
            return None
        return self.nodes[name]

    def swap(self, node: Node, new: Node, gone: tuple[Node, ...]) -> Node:
        """Put `new` in the place of `node`, without the nodes `gone`; return it."""
        for old in (node, *gone):
            for blob in dict.fromkeys(old.inputs):
                self.readers[blob].remove(old.name)
        names = {old.name for old in gone}
        self.nodes = {
            (new.name if name == node.name else name): (new if name == node.name else kept)
            for name, kept in self.nodes.items()
            if name not in names
        }
        for blob in new.outputs:
            self.writer[blob] = new.name
        self._enter(new)
        return new


Rewrite = Callable[[_Net, Node], Node]
"""Returns the node that stands where the given one stood."""


# ------------------------------------------------------------------ into layers with weights


def _channels(node: Node) -> int:
    attrs = node.attrs
    return int(attrs.out_features if node.op == "inner_product" else attrs.out_channels)


def _bias(node: Node) -> NDArray[np.float64]:
    bias = node.weights.get("bias")
    return np.zeros(_channels(node)) if bias is None else np.asarray(bias, np.float64)


def _scaled(layer: Node, gain: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a layer's weight with each output channel multiplied by its gain."""
    weight = np.asarray(layer.weights["weight"], np.float64)
    if layer.op == "deconvolution":  # in, out of a group, h, w
        group = layer.attrs.group
        grouped = weight.reshape(group, -1, *weight.shape[1:])
        return (grouped * gain.reshape(group, 1, -1, 1, 1)).reshape(weight.shape).astype(np.float32)
    return (weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.float32)


def _with(layer: Node, last: Node, weight: NDArray[np.float32], bias: NDArray[np.float64]) -> Node:
    return replace(
        layer,
        outputs=last.outputs,
        attrs=replace(layer.attrs, has_bias=True),
        weights={"weight": readonly(weight), "bias": readonly(bias.astype(np.float32))},
    )


def _fold_batch_norm(net: _Net, node: Node) -> Node:
    layer = net.source(node.inputs[0], node)
    if layer is None or layer.op not in _LAYERS:
        return node
    gain = np.broadcast_to(np.asarray(node.weights["scale"], np.float64), _channels(layer))
    shift = np.asarray(node.weights["bias"], np.float64)
    new = _with(layer, node, _scaled(layer, gain), _bias(layer) * gain + shift)
    return net.swap(node, new, (layer,))


def _by_channel(net: _Net, node: Node) -> NDArray[np.float64] | None:
    """Return the constant of a node as a value a channel of its input, if it is that."""
    constant = node.weights.get("constant")
    shape = net.shapes[node.inputs[0]]
    if len(node.inputs) != 1 or constant is None or len(shape) < 2 or constant.ndim > len(shape):
        return None
    aligned = (1,) * (len(shape) - constant.ndim) + constant.shape
    values = np.asarray(constant, np.float64).ravel()
    if values.size == 1:
        return np.repeat(values, shape[1])
    return values if values.size == aligned[1] == shape[1] else None


def _scalable(net: _Net, node: Node) -> Node | None:
    """Return the layer before a node that a factor or a term a channel can go into."""
    layer = net.source(node.inputs[0], node) if len(node.inputs) == 1 else None
    if layer is None or layer.op not in (*_LAYERS, "batch_norm"):
        return None
    axis = len(net.shapes[node.inputs[0]]) - 1 if layer.op == "inner_product" else 1
    return layer if axis == 1 else None


def _fold_term(net: _Net, node: Node) -> Node:
    """Take the addition of a constant a channel into the layer before it."""
    layer, term = _scalable(net, node), _by_channel(net, node)
    if layer is None or term is None:
        return node
    if layer.op == "batch_norm":
        return _renormalized(net, node, layer, np.ones(1), term)
    weight = np.asarray(layer.weights["weight"], np.float32)
    return net.swap(node, _with(layer, node, weight, _bias(layer) + term), (layer,))


def _fold_factor(net: _Net, node: Node) -> Node:
    """Take the multiplication with a constant a channel into the layer before it."""
    layer, gain = _scalable(net, node), _by_channel(net, node)
    if layer is None or gain is None:
        return node
    if node.op == "div":
        if node.attrs.constant_index != 1 or not gain.all():
            return node
        gain = 1 / gain
    if layer.op == "batch_norm":
        return _renormalized(net, node, layer, gain, np.zeros(1))
    new = _with(layer, node, _scaled(layer, gain), _bias(layer) * gain)
    return net.swap(node, new, (layer,))


def _renormalized(
    net: _Net, node: Node, norm: Node, gain: NDArray[np.float64], term: NDArray[np.float64]
) -> Node:
    """Put one batch norm in the place of a batch norm and what follows it."""
    scale, bias = (np.asarray(norm.weights[role], np.float64) for role in ("scale", "bias"))
    weights = {
        "scale": readonly((scale * gain).astype(np.float32)),
        "bias": readonly((bias * gain + term).astype(np.float32)),
    }
    return net.swap(node, replace(norm, outputs=node.outputs, weights=weights), (norm,))


def _fold_pad(net: _Net, node: Node) -> Node:
    """Take a pad of zeros into the convolution behind it."""
    pad = net.source(node.inputs[0], node)
    if pad is None or pad.op != "pad_v2" or node.attrs.pad_mode != "explicit":
        return node
    begins, ends = pad.attrs.begins, pad.attrs.ends
    plain = pad.attrs.kind == "constant" and pad.attrs.value == 0 and len(begins) == 4
    if not plain or any((*begins[:2], *ends[:2])) or min(*begins, *ends) < 0:
        return node
    top, bottom, left, right = node.attrs.pads
    pads = (top + begins[2], bottom + ends[2], left + begins[3], right + ends[3])
    new = replace(node, inputs=pad.inputs, attrs=replace(node.attrs, pads=pads))
    return net.swap(node, new, (pad,))


# ------------------------------------------------------------------ activations


def _number(node: Node) -> float | None:
    """Return the constant operand of a node where it is one number."""
    constant = node.weights.get("constant")
    if len(node.inputs) != 1 or constant is None or constant.size != 1:
        return None
    return float(np.asarray(constant).reshape(-1)[0])


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and isclose(value, wanted, rel_tol=_CLOSE)


@dataclass(frozen=True, slots=True)
class _Product:
    """factor * the product of blobs; nodes: those that compute it, besides the last one."""

    factor: float
    blobs: tuple[str, ...]
    nodes: tuple[Node, ...]


def _factor(node: Node) -> float | None:
    """Return the number that a node multiplies its one input with."""
    number = _number(node)
    if number is None or node.op not in {"mul", "div"}:
        return None
    if node.op == "mul":
        return number
    return 1 / number if node.attrs.constant_index == 1 and number else None


def _product(net: _Net, node: Node, depth: int = 3) -> _Product | None:
    """Write a node as a product, through the products that only it reads, `depth` of them deep."""
    factor = _factor(node)
    if factor is None and (node.op != "mul" or len(node.inputs) != 2):
        return None
    factor = 1.0 if factor is None else factor
    blobs: list[str] = []
    nodes: list[Node] = []
    for blob in node.inputs:
        source = net.source(blob, node)
        inner = None if source is None or not depth else _product(net, source, depth - 1)
        if source is None or inner is None:
            blobs.append(blob)
        else:
            factor *= inner.factor
            blobs += inner.blobs
            nodes += [source, *inner.nodes]
    return _Product(factor, tuple(blobs), tuple(nodes))


def _function_of(net: _Net, blob: str, x: str, readers: tuple[Node, ...]) -> list[Node] | None:
    """Return the nodes from x to that blob, the last first, if they are a chain that is read once.

    A cubic x + c * x ** 3 within the chain is given as its add.
    """
    chain: list[Node] = []
    while blob != x:
        node = net.source(blob, *(readers if not chain else (chain[-1],)))
        if node is None or len(chain) > 8:
            return None
        chain.append(node)
        others = [name for name in node.inputs if name != x]
        if len(node.inputs) > 2 or len(others) > 1:
            return None
        if len(node.inputs) == 2 and not others:
            return None
        blob = others[0] if others else x
    return chain


def _gate(net: _Net, chain: list[Node]) -> str:
    """Name the function that a chain computes: "sigmoid", "mish", "hard", "erf", "tanh" or ""."""
    ops = [node.op for node in chain]
    if ops == ["sigmoid"]:
        return "sigmoid"
    if ops == ["tanh", "softplus"]:
        return "mish"
    if ops == ["hard_sigmoid"]:
        return "hard"
    if ops == ["relu6", "add"] and _near(_number(chain[1]), 3):
        return "relu6"
    if not chain or ops[0] != "add" or not _near(_number(chain[0]), 1):
        return ""
    if ops[1:2] == ["erf"] and len(chain) == 3 and _near(_factor(chain[2]), sqrt(0.5)):
        return "erf"
    if ops[1:2] == ["tanh"] and _is_tanh_of_gelu(chain[2:]):
        return "tanh"
    return ""


def _is_tanh_of_gelu(chain: list[Node]) -> bool:
    """Whether a chain is sqrt(2 / pi) * (x + 0.044715 * x ** 3)."""
    if len(chain) != 4 or not _near(_factor(chain[0]), sqrt(2 / pi)):
        return False
    total, share, cube = chain[1:]
    return (
        total.op == "add"
        and len(total.inputs) == 2
        and _near(_factor(share), 0.044715)
        and cube.op == "power"
        and (cube.attrs.exponent, cube.attrs.scale, cube.attrs.shift) == (3.0, 1.0, 0.0)
    )


def _fold_gate(net: _Net, node: Node) -> Node:
    """Make one activation of x times a function of x."""
    product = _product(net, node)
    if product is None or len(product.blobs) != 2 or product.blobs[0] == product.blobs[1]:
        return node
    for x, gate in (product.blobs, product.blobs[::-1]):
        chain = _function_of(net, gate, x, (node, *product.nodes))
        kind = "" if chain is None else _gate(net, chain)
        activation = _ACTIVATIONS.get(kind)
        if chain is None or activation is None or not _near(product.factor, activation[0]):
            continue
        op, attrs = activation[1], activation[2]
        if kind == "hard":
            attrs = chain[0].attrs
        new = replace(node, op=op, inputs=(x,), attrs=attrs, weights={})
        return net.swap(node, new, (*product.nodes, *chain))
    return node


def _fold_softplus(net: _Net, node: Node) -> Node:
    """Make softplus of log(exp(x) + 1)."""
    plus = net.source(node.inputs[0], node)
    if plus is None or plus.op != "add" or not _near(_number(plus), 1):
        return node
    power = net.source(plus.inputs[0], plus)
    if power is None or power.op != "exp":
        return node
    new = replace(node, op="softplus", inputs=power.inputs)
    return net.swap(node, new, (plus, power))


def _fold_hard_sigmoid(net: _Net, node: Node) -> Node:
    """Make hard_sigmoid of relu6(x + 3) / 6."""
    clipped = net.source(node.inputs[0], node) if _near(_factor(node), 1 / 6) else None
    if clipped is None or clipped.op != "relu6":
        return node
    plus = net.source(clipped.inputs[0], clipped)
    if plus is None or plus.op != "add" or not _near(_number(plus), 3):
        return node
    attrs = HardAttrs(1 / 6, 0.5)
    new = replace(node, op="hard_sigmoid", inputs=plus.inputs, attrs=attrs, weights={})
    return net.swap(node, new, (clipped, plus))


_SIXTH = HardAttrs(1 / 6, 0.5)
_ACTIVATIONS: Mapping[str, tuple[float, str, object]] = {
    "sigmoid": (1.0, "swish", NoAttrs()),
    "mish": (1.0, "mish", CurveAttrs()),
    "hard": (1.0, "hard_swish", _SIXTH),
    "relu6": (1 / 6, "hard_swish", _SIXTH),
    "erf": (0.5, "gelu_erf", CurveAttrs()),
    "tanh": (0.5, "gelu", NoAttrs()),
}
"""Gate -> the number it is multiplied with besides x, and the op that this is."""

_IDIOMS: tuple[tuple[str, Rewrite], ...] = (
    ("log", _fold_softplus),
    ("mul", _fold_hard_sigmoid),
    ("div", _fold_hard_sigmoid),
    ("mul", _fold_gate),
    ("div", _fold_gate),
)
_FOLDS: tuple[tuple[str, Rewrite], ...] = (
    ("convolution", _fold_pad),
    ("batch_norm", _fold_batch_norm),
    ("mul", _fold_factor),
    ("div", _fold_factor),
    ("add", _fold_term),
)
"""Op of the last node of a pattern -> what replaces it."""

"""From statistics to an int8 network: which nodes, which scales, which codes.

`choose_nodes` says what runs in int8, `solve` decides the scales of blobs, `quantize` the codes of
weights and biases.  Two modes share the code:

* the default repairs what the original tool gets wrong: blobs that the runtime copies or compares
  without rescaling really share their scales (pooling, ReLU, per-channel concat), biases are
  rounded, dead channels keep their bias, and combinations that TNN's int8 kernels compute wrongly
  stay float;
* ``compat`` follows TNN's ``quantization_cmd`` (``tools/quantization/calibration.cc``) step by
  step, its quirks included, except for its out-of-bounds read of the bias with per-tensor weights.

For ONNX, `quantjit.onnx_target` has the choices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quantjit import onnx_target, solvers
from quantjit.errors import CalibrationError, UnsupportedError, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Graph, Node, readonly
from quantjit.ops import Shape
from quantjit.passes.lower import fuses_with_add
from quantjit.quant import NodeQuant, QuantParams
from quantjit.solvers import BlobSolver, WeightCodes, WeightSolver
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable

T = TypeVar("T")

MERGES = ("channel", "mix", "tensor")
"""-t 0: a scale per channel for weights and blobs; -t 1: for weights only; -t 2: for neither."""

TARGETS = ("tnn", "onnx")
"""Formats of the int8 network: each has its own scales and integer arithmetic."""

ACTIVATIONS = ("int8", "uint8")
"""Types of the codes of blobs in an ONNX file."""

PASSES = ("equalize", "bias", "rounding")
"""Passes that make the int8 network better, in the order they are tried; see `quantjit.refine`."""

_WEIGHTED = ("convolution", "inner_product")
_FREE = ("convolution", "inner_product", "add")  # requantize to any output scale
_INT32_LIMIT = float(2**31 - 2**24)  # the accumulator needs room beside the bias
_BIAS_CODE = float(2**23)  # code of the bias of a channel whose weights are all zero


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of a quantization.

    blob_method, weight_method: names of solvers, by default mse, with compat minmax.  merge: one of
    MERGES.  compat: reproduce TNN's tool.  float_nodes: names of nodes to keep float; exclude: the
    same by name, op or pattern (``block?/*``).  target: one of TARGETS.  For ONNX: symmetric: blobs
    without zero points, as they always are for TNN unless the blob method has them; activations:
    type of their codes in the file, one of ACTIVATIONS.  passes: those of PASSES that
    `quantjit.refine` tries.
    """

    blob_method: str = ""
    weight_method: str = ""
    merge: str = "mix"
    compat: bool = False
    float_nodes: tuple[str, ...] = ()
    target: str = "tnn"
    symmetric: bool = False
    exclude: tuple[str, ...] = ()
    activations: str = "uint8"
    passes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("blob_method", "weight_method"):
            if not getattr(self, name):
                object.__setattr__(self, name, "minmax" if self.compat else "mse")
        if self.merge not in MERGES:
            raise UnsupportedError("merge type", self.merge, MERGES)
        if self.target not in TARGETS:
            raise UnsupportedError("target", self.target, TARGETS)
        if self.activations not in ACTIVATIONS:
            raise UnsupportedError("type of activations", self.activations, ACTIVATIONS)
        for name in self.passes:
            if name not in PASSES:
                raise UnsupportedError("pass", name, PASSES)
        if self.passes and self.compat:
            raise UsageError("--compat tnn is the arithmetic of TNN's tool, which has no passes")
        _ = self.blob_solver, self.weight_solver
        if self.target == "onnx":
            self._check_onnx()

    def _check_onnx(self) -> None:
        if self.merge == "channel":
            raise UsageError(
                "ONNX has one scale a blob, merge type channel asks for one a channel; "
                "use mix: a scale per channel for weights only"
            )
        if self.compat:
            raise UsageError("--compat tnn is the arithmetic of TNN's tool: it writes no ONNX")
        if not self.weight_solver.symmetric:
            raise UsageError(
                f"weight method {self.weight_method} has a zero point a channel, which onnxruntime "
                "does not run; use minmax, admm or mse"
            )

    @property
    def blob_solver(self) -> BlobSolver:
        """The solver of blobs; UnsupportedError if there is none of that name."""
        return _named("blob method", self.blob_method, solvers.blob_solvers())

    @property
    def weight_solver(self) -> WeightSolver:
        """The solver of weights; UnsupportedError if there is none of that name."""
        return _named("weight method", self.weight_method, solvers.weight_solvers())

    def __str__(self) -> str:
        mode = ", compat tnn" if self.compat else ""
        if self.target != "tnn":
            mode += f", {self.target}"
            mode += ", symmetric" if self.symmetric else ""
            mode += ", int8 activations" if self.activations == "int8" else ""
        return f"blobs {self.blob_method}, weights {self.weight_method}, {self.merge}{mode}"


def _named(kind: str, name: str, known: Mapping[str, T]) -> T:
    try:
        return known[name]
    except KeyError:
        raise UnsupportedError(kind, name, known) from None


# ------------------------------------------------------------------ which nodes, which blobs


def choose_nodes(graph: Graph, settings: Settings) -> dict[str, str]:
    """Node name -> why it stays float, "" where it runs in int8.

    graph: with its activations fused.  TNN's tool takes convolution, inner product, add and concat,
    then ReLU and max pooling behind an int8 node; so do we, less what its runtime gets wrong.
    """
    excluded = _excluded(graph, settings)
    if settings.target == "onnx":
        return onnx_target.choose_nodes(graph, infer_shapes(graph), excluded)
    producer = graph.producer()
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in excluded:
            reasons[node.name] = excluded[node.name]
        elif node.op in {"relu", "pooling"}:
            source = producer.get(node.inputs[0])
            after_int8 = source is not None and not reasons[source.name]
            reasons[node.name] = _why_passive_is_float(node, settings, after_int8=after_int8)
        else:
            reasons[node.name] = _why_float(node, settings)
    if not settings.compat:
        _avoid_broken_fusion(graph, reasons)
        _avoid_fusing_into_float(graph, reasons)
    return reasons


def _excluded(graph: Graph, settings: Settings) -> dict[str, str]:
    """Node name -> why it is to stay float; UnsupportedError for what fits no node."""
    names = {node.name for node in graph.nodes}
    unknown = set(settings.float_nodes) - names
    if unknown:
        raise UnsupportedError("node", min(unknown), [node.name for node in graph.nodes])
    found = dict.fromkeys(settings.float_nodes, "asked for")
    for pattern in settings.exclude:
        fitting = [
            node.name
            for node in graph.nodes
            if node.op == pattern or node.name == pattern or fnmatchcase(node.name, pattern)
        ]
        if not fitting:
            known = dict.fromkeys([*(n.op for n in graph.nodes), *(n.name for n in graph.nodes)])
            raise UnsupportedError("node, op or pattern of names", pattern, known)
        found |= dict.fromkeys(fitting, f"excluded by {pattern}")
    return found


def stuck_nodes(graph: Graph, macs: Mapping[str, int], settings: Settings) -> list[Node]:
    """Return the nodes with multiplications that nobody asked to be float but that cannot be int8.

    macs: multiply-accumulates by node name.
    """
    excluded = _excluded(graph, settings)
    reasons = choose_nodes(graph, settings)
    return [
        node
        for node in graph.nodes
        if macs[node.name] and reasons[node.name] and node.name not in excluded
    ]


def _why_float(node: Node, settings: Settings) -> str:
    if node.op not in (*_WEIGHTED, "add", "concat"):
        return "no int8 form that TNN's tool writes"
    if node.op == "add" and node.attrs.constant_index >= 0:
        return "adds a constant"
    if settings.compat:
        return ""
    if node.op == "convolution" and node.attrs.activation == "swish":
        return "TNN's int8 convolution leaves out the fused swish"
    if node.op == "concat" and settings.merge == "channel" and node.attrs.axis != 1:
        return "per-channel scales cannot be joined along another axis than the channels"
    return ""


def _why_passive_is_float(node: Node, settings: Settings, *, after_int8: bool) -> str:
    """ReLU and pooling do not rescale: they run in int8 only between int8 neighbours."""
    if node.op == "pooling" and node.attrs.kind != "max":
        return "TNN's int8 average pooling truncates"
    if not after_int8:
        return "its input is float"
    if node.op == "relu" and not settings.compat and not settings.blob_solver.symmetric:
        return "TNN's int8 ReLU ignores zero points"
    return ""


def _marked(graph: Graph, reasons: Mapping[str, str]) -> Graph:
    """Mark the chosen nodes as int8, without codes yet."""
    return graph.with_nodes(
        tuple(
            node if reasons[node.name] else replace(node, quant=NodeQuant()) for node in graph.nodes
        )
    )


def _avoid_broken_fusion(graph: Graph, reasons: dict[str, str]) -> None:
    """Keep an add float that TNN would merge into a convolution + ReLU6, which then loses it."""
    marked = _marked(graph, reasons)
    for before, node in zip(marked.nodes, marked.nodes[1:], strict=False):
        if fuses_with_add(marked, before, node) and before.attrs.activation == "relu6":
            reasons[node.name] = "TNN's fused convolution + ReLU6 + add drops the add"


def _avoid_fusing_into_float(graph: Graph, reasons: dict[str, str]) -> None:
    """Passive nodes follow their producer where the last step made that one float."""
    producer = graph.producer()
    for node in graph.nodes:
        if node.op in {"relu", "pooling"} and not reasons[node.name]:
            source = producer[node.inputs[0]]
            if reasons[source.name]:
                reasons[node.name] = "its input is float"


def observed_blobs(graph: Graph, shapes: Mapping[str, Shape], settings: Settings) -> dict[str, int]:
    """Blob name -> channels of its statistics (1: per tensor), for each that needs a scale."""
    reasons = choose_nodes(graph, settings)
    touched = [
        blob
        for node in graph.nodes
        if not reasons[node.name]
        for blob in (*node.inputs, *node.outputs)
    ]
    per_tensor = _per_tensor_blobs(graph, reasons, shapes, settings)
    return {
        blob: 1 if blob in per_tensor or len(shapes[blob]) < 2 else shapes[blob][1]
        for blob in dict.fromkeys(touched)
    }


def _per_tensor_blobs(
    graph: Graph, reasons: Mapping[str, str], shapes: Mapping[str, Shape], settings: Settings
) -> set[str]:
    """Blobs that must have one scale.

    Inner products need it.  So does, in the default mode, whatever is tied to such a blob: the
    operands of an add, of a concat and both sides of a pooling or ReLU are of one kind.
    """
    if settings.merge != "channel":
        return set(graph.blobs())
    int8_nodes = [node for node in graph.nodes if not reasons[node.name]]
    forced = {
        blob
        for node in int8_nodes
        if node.op == "inner_product"
        for blob in (*node.inputs, *node.outputs)
    }
    if settings.compat:
        return forced
    ties = [{*node.inputs, *node.outputs} for node in int8_nodes if node.op not in _WEIGHTED]
    for node in int8_nodes:  # TNN requantizes a concat of one-channel blobs as if per tensor
        if node.op == "concat" and all(shapes[blob][1] == 1 for blob in node.inputs):
            forced |= {*node.inputs, *node.outputs}
    grows = True
    while grows:
        grown = forced.union(*(tie for tie in ties if tie & forced))
        grows, forced = grown != forced, grown
    return forced


# ------------------------------------------------------------------ scales of blobs


class Memo:
    """What was solved already: share one between the settings of one network and one evidence.

    weight_bytes: codes of weights are kept up to so many bytes.  Results do not depend on it.
    """

    def __init__(self, weight_bytes: int = 2**28) -> None:
        self._blobs: dict[tuple[object, ...], QuantParams] = {}
        self._weights: dict[tuple[object, ...], WeightCodes] = {}
        self._left = weight_bytes

    def blob(self, key: tuple[object, ...], make: Callable[[], QuantParams]) -> QuantParams:
        """Return the scales of this key, made at its first use."""
        if key not in self._blobs:
            self._blobs[key] = make()
        return self._blobs[key]

    def weights(self, key: tuple[object, ...], make: Callable[[], WeightCodes]) -> WeightCodes:
        """Return the codes of this key, made at its first use or whenever there is no room."""
        found = self._weights.get(key)
        if found is None:
            found = make()
            if found.codes.nbytes <= self._left:
                self._left -= found.codes.nbytes
                self._weights[key] = found
        return found


def solve(
    graph: Graph,
    stats: Mapping[str, BlobStats] | Mapping[str, ReferenceStats],
    settings: Settings,
    memo: Memo | None = None,
) -> CalibrationTable:
    """Decide the scale of every blob that an int8 node touches.

    graph: with its activations fused.  stats: of `observed_blobs`, BlobStats or, in compat mode,
    ReferenceStats with their histograms.  Raises CalibrationError naming the blob.
    """
    memo = memo or Memo(0)
    reasons = choose_nodes(graph, settings)
    inputs = {blob.name for blob in graph.inputs}
    scales: dict[str, QuantParams] = {}
    dead: dict[str, int] = {}
    for blob, seen in stats.items():
        # The range of a network input is known, not estimated: nothing of it may be clipped.
        method = "minmax" if blob in inputs else settings.blob_method
        if isinstance(seen, ReferenceStats):
            scales[blob] = solvers.solve_reference(seen, method, blob)
        else:
            if seen.is_empty:
                raise CalibrationError(blob, "no finite value was seen")
            if settings.target == "tnn" and _needs_symmetric(graph, blob, settings):
                method = "minmax"
            scales[blob] = memo.blob(
                (blob, seen.channels, method, settings.target, settings.symmetric),
                partial(_blob_scale, seen, method, settings),
            )
            dead[blob] = int((seen.absmax == 0).sum())
    return CalibrationTable(
        settle(graph, reasons, scales, settings),
        {name: reason for name, reason in reasons.items() if reason},
        {blob: count for blob, count in dead.items() if count},
        str(settings),
    )


def _blob_scale(seen: BlobStats, method: str, settings: Settings) -> QuantParams:
    solver = solvers.blob_solvers()[method]
    if settings.target == "onnx":
        return onnx_target.blob_scale(seen, solver, symmetric=settings.symmetric)
    return _revive(solver.solve(seen))


def _needs_symmetric(graph: Graph, blob: str, settings: Settings) -> bool:
    """Whether TNN's kernel ignores the zero point of this blob: convolution + ReLU6 writes it."""
    if settings.blob_solver.symmetric:
        return False
    producer = graph.producer().get(blob)
    return (
        producer is not None
        and producer.op == "convolution"
        and producer.attrs.activation == "relu6"
    )


def _revive(params: QuantParams) -> QuantParams:
    """Give dead channels the median step of the live ones.

    Their codes are 0 with any step; with step 0 the next layer would lose what a channel carries
    that was silent only on the calibration data, and a depthwise layer would lose its bias.
    """
    live = params.scale > 0
    if live.all():
        return params
    step = np.median(params.scale[live]) if live.any() else np.float32(1)
    return QuantParams(np.where(live, params.scale, step), params.zero_point)


def settle(
    graph: Graph, reasons: Mapping[str, str], scales: Mapping[str, QuantParams], settings: Settings
) -> dict[str, QuantParams]:
    """Make the scales agree wherever the target copies or compares codes without rescaling.

    reasons: of `choose_nodes`.  In compat mode nothing is done here: `quantize` does it afterwards.
    """
    if settings.target == "onnx":
        return onnx_target.share_scales(graph, reasons, scales)
    return dict(scales) if settings.compat else _share_scales(graph, reasons, scales)


def _share_scales(
    graph: Graph, reasons: Mapping[str, str], scales: Mapping[str, QuantParams]
) -> dict[str, QuantParams]:
    """Make the scales agree wherever the runtime copies or compares codes without rescaling."""
    producer, readers = graph.producer(), graph.readers()
    settled = dict(scales)
    for node in graph.nodes:
        if reasons[node.name]:
            continue
        source, target = node.inputs[0], node.outputs[0]
        if node.op == "pooling":
            settled[target] = settled[source]
        elif node.op == "relu":
            only_reader = len(readers[source]) == 1 and source not in graph.outputs
            if only_reader and producer[source].op in _FREE:
                settled[source] = settled[target]  # no code is spent on what ReLU cuts off
            else:
                settled[target] = settled[source]
        elif node.op == "concat" and any(settled[blob].per_channel for blob in node.inputs):
            parts = [settled[blob] for blob in node.inputs]  # TNN copies the bytes
            settled[target] = QuantParams(
                np.concatenate([part.scale for part in parts]),
                np.concatenate([part.zero_point for part in parts]),
            )
    return settled


# ------------------------------------------------------------------ codes of weights


def quantize(
    graph: Graph, table: CalibrationTable, settings: Settings, memo: Memo | None = None
) -> Graph:
    """Return the int8 network: codes, int32 biases and the scales of its blobs.

    graph: float, with its activations fused.  table: of `solve` with the same settings.
    """
    memo = memo or Memo(0)
    scales = dict(table.scales)
    nodes = []
    for node in graph.nodes:
        merged_later = settings.compat and node.op in {"relu", "pooling"}
        if node.name in table.float_nodes or merged_later:
            nodes.append(node)
        elif node.op in _WEIGHTED:
            nodes.append(_quantize_weights(node, scales[node.inputs[0]], settings, memo))
        else:
            nodes.append(replace(node, quant=NodeQuant()))
    quantized = graph.with_nodes(tuple(nodes))
    if settings.compat:
        quantized, scales = _merge_as_reference(quantized, scales)
    touched = {
        blob for node in quantized.nodes if node.quant for blob in (*node.inputs, *node.outputs)
    }
    kept = {blob: params for blob, params in scales.items() if blob in touched}
    arithmetic = settings.target
    if arithmetic == "onnx" and settings.activations == "uint8":
        arithmetic = "onnx-uint8"
    return replace(quantized, scales=kept, arithmetic=arithmetic)


def _quantize_weights(node: Node, source: QuantParams, settings: Settings, memo: Memo) -> Node:
    """Fold the input's steps into the weights and quantize these and the bias.

    ``real = acc * weight_scale`` then holds with one weight_scale an output channel although every
    input channel has its own step.  A depthwise layer has one input channel an output channel, so
    there the step goes into the scale (``quantization_util``/``calibration.cc`` in TNN).
    """
    weight = np.asarray(node.weights["weight"], np.float32)
    if node.op == "inner_product" and node.attrs.transpose:
        weight = np.ascontiguousarray(weight.T)
    rows = weight.shape[0]
    depthwise = node.op == "convolution" and _is_depthwise(node)
    # One step of the input, and that of a depthwise layer, goes into the scale afterwards: codes do
    # not depend on it.  ONNX stores the weights' own scale anyway.
    steps_last = depthwise or settings.target == "onnx"
    steps_last = steps_last or not (source.per_channel or settings.compat)
    if steps_last:
        folded = weight
    elif not source.per_channel:
        folded = weight * source.scale[0]
    else:
        group = node.attrs.group
        steps = source.scale.reshape(group, 1, -1).repeat(rows // group, axis=1)
        folded = weight * steps.reshape(rows, -1, 1, 1)
    matrix = folded.reshape(1 if settings.merge == "tensor" else rows, -1)
    factors = b"" if steps_last else source.scale.tobytes()
    codes = memo.weights(
        (node.name, settings.weight_method, matrix.shape, factors, settings.compat),
        lambda: settings.weight_solver.quantize(np.ascontiguousarray(matrix), settings.compat),
    )
    scale, zero_point, code = codes.scale, codes.zero_point, codes.codes
    if depthwise and source.per_channel and scale.size == 1:
        raise CalibrationError(
            node.inputs[0], f"depthwise {node.name!r} cannot have one weight scale and many inputs'"
        )
    if steps_last:
        scale = (scale * source.scale).astype(np.float32)
    bias = np.asarray(node.weights.get("bias", np.zeros(rows)), np.float32)
    if settings.compat:
        bias_codes = _truncated_bias(bias, scale)
    else:
        scale, code, bias_codes = _fitting_bias(bias, scale, code, zero_point)
    attrs = node.attrs
    if node.op == "inner_product":
        attrs = replace(attrs, transpose=False)
    weights = dict(node.weights) | {"weight": readonly(code.reshape(weight.shape))}
    if node.attrs.has_bias:
        weights["bias"] = readonly(bias_codes)
    return replace(
        node,
        attrs=attrs,
        weights=weights,
        quant=NodeQuant(readonly(scale), readonly(zero_point)),
    )


def _is_depthwise(node: Node) -> bool:
    attrs = node.attrs
    return bool(attrs.group > 1 and attrs.group == attrs.in_channels == attrs.out_channels)


def _truncated_bias(bias: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """int32 codes as TNN's tool writes them: a C cast of the quotient, 0 where the scale is 0."""
    steps = np.broadcast_to(scale, bias.shape)
    live = steps != 0
    quotient = np.divide(bias, steps, out=np.zeros_like(bias), where=live)
    limit = np.float32(2**31 - 128)  # the largest float32 below 2**31
    codes: NDArray[np.int32] = np.trunc(np.clip(quotient, -limit, limit)).astype(np.int32)
    return codes


def _fitting_bias(
    bias: NDArray[np.float32],
    scale: NDArray[np.float32],
    codes: NDArray[np.int8],
    zero_point: NDArray[np.int8],
) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int32]]:
    """Round the bias to int32, with a larger weight scale where it would not fit.

    A row whose weights are all 0 has no scale of its own: it gets one that holds its bias to 23
    bits.  A bias of over 2**31 steps makes its row's scale larger and its codes smaller.
    """
    rows = scale.size
    largest = np.abs(bias.astype(np.float64)).reshape(rows, -1).max(axis=1)
    steps = scale.astype(np.float64)
    empty = np.where(largest > 0, largest / _BIAS_CODE, 1.0)
    needed = largest / _INT32_LIMIT
    fitted = np.where(steps > 0, np.maximum(steps, needed), empty).astype(np.float32)
    grown = (steps > 0) & (fitted > scale)
    if grown.any():
        ratio = np.where(grown, steps / fitted, 1.0).reshape(rows, 1)
        zeros = zero_point.reshape(rows, 1)
        real = (codes.reshape(rows, -1).astype(np.int32) - zeros) * ratio
        codes = (np.trunc(real + np.copysign(0.5, real)) + zeros).astype(np.int8)
    quotient = bias.astype(np.float64) / np.broadcast_to(fitted.astype(np.float64), bias.shape)
    rounded = np.trunc(quotient + np.copysign(0.5, quotient))
    return fitted, codes, rounded.astype(np.int32)


def _merge_as_reference(
    graph: Graph, scales: dict[str, QuantParams]
) -> tuple[Graph, dict[str, QuantParams]]:
    """Share the scales of ReLU and max pooling as TNN's tool does, after the weights are made.

    Backwards through chains: the input takes the scale of the output, the layer becomes int8 and
    the same is tried on its producer (``Calibration::MergeBlobScale``).
    """
    producer = graph.producer()
    int8_names = {node.name for node in graph.nodes if node.quant is not None}

    def merge(node: Node) -> None:
        passive = node.op == "relu" or (node.op == "pooling" and node.attrs.kind == "max")
        source = producer.get(node.inputs[0]) if passive else None
        if source is None or source.name not in int8_names:
            return
        scales[node.inputs[0]] = scales[node.outputs[0]]
        int8_names.add(node.name)
        merge(source)

    for node in graph.nodes:
        merge(node)
    nodes = tuple(
        replace(node, quant=NodeQuant()) if node.name in int8_names and not node.quant else node
        for node in graph.nodes
    )
    return graph.with_nodes(nodes), scales

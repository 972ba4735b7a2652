"""A scale is changed by hand: the blobs that must have the same one follow."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantjit import quantizer
from quantjit.errors import UnsupportedError, UsageError
from quantjit.graph import Graph, Node
from quantjit.quant import QuantParams
from quantjit.quantizer import Settings
from quantjit.table import CalibrationTable

_LOWEST_CODE = {"tnn": -127, "onnx": -128}


def thresholds_of(params: QuantParams, settings: Settings) -> NDArray[np.float64]:
    """Return the largest magnitude that the codes reach, float64 (channels,), in real units."""
    steps, zeros = params.scale.astype(np.float64), params.zero_point.astype(np.float64)
    reach: NDArray[np.float64] = steps * np.maximum(
        zeros - _LOWEST_CODE[settings.target], 127 - zeros
    )
    return reach


def with_threshold(
    graph: Graph,
    table: CalibrationTable,
    settings: Settings,
    blob: str,
    threshold: float,
    channel: int | None = None,
) -> CalibrationTable:
    """Return the table with another clipping threshold of one blob.

    The zero point stays, the step grows or shrinks; blobs whose codes the target copies from or to
    this one without rescaling get the same.

    Parameters
    ----------
    graph : float network of the table
    table, settings : of one `quantjit.solve`
    blob : name of a blob that has a scale
    threshold : largest magnitude that the codes are to reach, in real units, above 0
    channel : of a blob with a scale a channel: the one to change; None changes all by one factor,
        so that the widest reaches the threshold

    Raises
    ------
    UnsupportedError
        a blob without a scale
    UsageError
        a threshold or channel that cannot be, or a scale that follows from others
    """
    if settings.compat:
        raise UsageError("compat follows TNN's tool, which decides its scales by itself")
    if blob not in table.scales:
        raise UnsupportedError("blob with a scale", blob, table.scales)
    if not threshold > 0 or not np.isfinite(threshold):
        raise UsageError(f"the threshold of {blob!r} must be a number above 0, got {threshold}")
    params = table.scales[blob]
    if channel is not None and not 0 <= channel < params.scale.size:
        raise UsageError(f"blob {blob!r} has {params.scale.size} scales, there is none {channel}")
    found = thresholds_of(params, settings)
    place = slice(None) if channel is None else slice(channel, channel + 1)
    steps = params.scale.astype(np.float64)
    steps[place] *= threshold / found[place].max()
    changed = QuantParams(steps.astype(np.float32), params.zero_point)
    reasons = {node.name: table.float_nodes.get(node.name, "") for node in graph.nodes}
    tied = _tied(graph, table, blob, settings)
    scales = dict(table.scales) | dict.fromkeys(tied, changed)
    settled = quantizer.settle(graph, reasons, scales, settings)
    if settled[blob] != changed:
        source = graph.producer()[blob]
        raise UsageError(
            f"the scale of {blob!r} follows from those of {', '.join(source.inputs)}: change these"
        )
    return replace(table, scales=settled)


def _tied(graph: Graph, table: CalibrationTable, blob: str, settings: Settings) -> set[str]:
    """Return the blobs that share the scale of this one, itself among them."""
    group = {blob}
    nodes = [
        node
        for node in graph.nodes
        if node.name not in table.float_nodes and _copies(node, settings)
    ]
    for _ in nodes:  # as long as a chain of them can be
        size = len(group)
        for node in nodes:
            ends = {name for name in (*node.inputs, *node.outputs) if name in table.scales}
            same = {name for name in ends if table.scales[name] == table.scales[blob]}
            if same & group:
                group |= same
        if len(group) == size:
            break
    return group


def _copies(node: Node, settings: Settings) -> bool:
    """Whether codes go through without rescaling, if the scales are the same."""
    if "weight" in node.weights or node.op == "add":
        return False
    return node.op != "concat" or settings.target == "onnx"

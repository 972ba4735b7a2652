"""What an int8 network for ONNX looks like: which nodes, and which scales.

ONNX has one scale and one zero point a blob and rescales wherever scales differ, so that more runs
in int8 than in TNN's runtime: average pooling, layers that move elements, and adds and concats with
any scales.  Choices are those that onnxruntime has an int8 kernel for and that lose least:

* a blob without negative values has its 0 at the lowest code: all 256 codes are used, and a ReLU
  before it costs nothing;
* what only selects or moves codes (max pooling, reshapes) shares the scale of its input, and a ReLU
  that of its output with what it reads;
* a part that only a concat reads is written in the concat's scale: it is rounded once, not twice;
* an average pooling that makes the scores stays float, where they keep their resolution.
"""

from collections.abc import Mapping

import numpy as np

from quantjit.graph import Graph, Node
from quantjit.ops import Shape
from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

_MOVES = ("flatten", "reshape", "permute", "squeeze", "unsqueeze")
_CLIPS = ("relu", "relu6")
_FREE = ("convolution", "inner_product", "add")  # write in any scale
_LAST = ("softmax", "log_softmax", *_MOVES)  # what may stand between the scores and an output
_CODES = 255  # steps from the lowest code to the highest
_LOWEST, _HIGHEST = -128, 127


def choose_nodes(
    graph: Graph, shapes: Mapping[str, Shape], excluded: Mapping[str, str]
) -> dict[str, str]:
    """Node name -> why it stays float, "" where it runs in int8.

    excluded: node name -> reason, for those that are to stay float.
    """
    producer, final = graph.producer(), _final_blobs(graph)
    reasons: dict[str, str] = {}

    def is_int8(blob: str) -> bool:
        return blob in producer and not reasons[producer[blob].name]

    for node in graph.nodes:
        if node.name in excluded:
            reasons[node.name] = excluded[node.name]
        elif graph.constants.keys() & set(node.inputs):
            reasons[node.name] = "reads a constant blob"
        elif node.op in ("convolution", "inner_product"):
            swish = node.op == "convolution" and node.attrs.activation == "swish"
            reasons[node.name] = "onnxruntime has no int8 form of a fused swish" if swish else ""
        elif node.op in ("add", "concat"):
            reason = _why_joint_is_float(node, shapes)
            if not reason and not any(is_int8(blob) for blob in node.inputs):
                reason = "its inputs are float"
            reasons[node.name] = reason
        elif node.op in (*_CLIPS, *_MOVES, "pooling"):
            average = node.op == "pooling" and node.attrs.kind != "max"
            if not is_int8(node.inputs[0]):
                reasons[node.name] = "its input is float"
            elif average and node.outputs[0] in final:
                reasons[node.name] = "makes the scores, which keep their resolution"
            else:
                reasons[node.name] = ""
        else:
            reasons[node.name] = "no int8 form that is written for onnxruntime"
    return reasons


def _why_joint_is_float(node: Node, shapes: Mapping[str, Shape]) -> str:
    if node.op == "concat":
        return ""
    if len(node.inputs) != 2:
        return "adds a constant" if len(node.inputs) == 1 else "adds more than two blobs"
    if shapes[node.inputs[0]] != shapes[node.inputs[1]]:
        return "adds blobs of different shapes"
    return ""


def _final_blobs(graph: Graph) -> set[str]:
    """Return the outputs of the network, and what softmax and the like make into one."""
    readers = graph.readers()
    final = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.op in _LAST and set(node.outputs) <= final:
            final |= {blob for blob in node.inputs if readers[blob] == [node]}
    return final


# ------------------------------------------------------------------ scales


def blob_scale(stats: BlobStats, solver: BlobSolver, *, symmetric: bool) -> QuantParams:
    """Return the scale and zero point of a blob from its statistics, one channel.

    The solver's threshold clips the range that was seen, which is then spread over the 256 codes;
    symmetric: over 127 to either side of 0.
    """
    absmax = float(stats.absmax[0])
    if absmax == 0:
        return QuantParams(1.0)
    lowest = min(float(stats.minimum[0]), 0.0)
    highest = max(float(stats.maximum[0]), 0.0)
    if symmetric:
        codes = _HIGHEST
    else:  # so many steps reach from 0 to the larger side
        codes = max(_HIGHEST, min(round(_CODES * absmax / (highest - lowest)), _CODES))
    threshold = absmax
    if solver.threshold is not None:
        threshold = min(float(solver.threshold(stats, codes)[0]), absmax)
    elif solver.symmetric:  # decides the step for 127 codes; further ones go to the tail
        threshold = min(float(solver.solve(stats).scale[0]) * codes, absmax)
    if symmetric:
        return QuantParams(threshold / codes)
    lowest, highest = max(lowest, -threshold), min(highest, threshold)
    scale = np.float32((highest - lowest) / _CODES)
    if float(scale) * _CODES > highest - lowest:
        # never above the range: that of a ReLU6 then ends at 6, and the codes do its work
        scale = np.nextafter(scale, np.float32(0))
    zero = np.clip(np.rint(_LOWEST - lowest / float(scale)), _LOWEST, _HIGHEST)
    return QuantParams(scale, zero)


def share_scales(
    graph: Graph, reasons: Mapping[str, str], scales: Mapping[str, QuantParams]
) -> dict[str, QuantParams]:
    """Make the scales agree where codes are only selected, moved or clipped."""
    producer, readers = graph.producer(), graph.readers()
    settled = dict(scales)

    def is_free(blob: str, reader: Node) -> bool:
        """Whether an int8 node writes this blob for that reader alone, in any scale."""
        source = producer.get(blob)
        if source is None or reasons[source.name]:
            return False
        alone = readers[blob] == [reader] and blob not in graph.outputs
        return alone and (source.op in _FREE or _averages(source))

    for node in graph.nodes:
        if reasons[node.name]:
            continue
        source, target = node.inputs[0], node.outputs[0]
        if node.op in _CLIPS and is_free(source, node):
            settled[source] = settled[target]  # no code is spent on what is cut off
        elif node.op in _CLIPS or node.op in _MOVES or _selects(node):
            settled[target] = settled[source]
        elif node.op == "concat":
            parts = [blob for blob in node.inputs if is_free(blob, node)]
            settled |= dict.fromkeys(parts, settled[target])
    return settled


def _averages(node: Node) -> bool:
    return node.op == "pooling" and node.attrs.kind != "max"


def _selects(node: Node) -> bool:
    return node.op == "pooling" and node.attrs.kind == "max"

"""How far an int8 network is from its float twin, blob by blob and end to end.

SQNR = 10 log10(sum x^2 / sum (x - y)^2) in dB, the cosine of the two vectors and the largest
absolute error, over all compared inputs; top-1 agreement where an output is a list of class scores.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.executor import Executor, count_macs, infer_shapes
from quantjit.graph import Array, Graph
from quantjit.kernels import compare
from quantjit.ops import Shape
from quantjit.passes.lower import lower
from quantjit.quant import QuantParams

_SUM_TOLERANCE = 1e-3  # of the sum of a softmax

EXACT_SQNR = 200.0
"""dB reported where nothing differs."""


@dataclass(frozen=True, slots=True)
class BlobError:
    """Error of one blob: sqnr in dB, cosine in [-1, 1], largest |x - y| in real units."""

    blob: str
    sqnr: float
    cosine: float
    largest: float


@dataclass(frozen=True, slots=True)
class NodeError:
    """Error of the blob that a node writes.

    is_int8; macs for one input; error of its output; lost: dB lost in this node, the lowest SQNR of
    its inputs less its own (negative where it is better than its inputs); why_float: "" if int8.
    """

    name: str
    op: str
    is_int8: bool
    macs: int
    error: BlobError
    lost: float
    why_float: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The evidence of one verification.

    nodes: in order of execution, those whose blob exists in both networks.  outputs: error of each
    network output.  sqnr: dB over all outputs together.  images: inputs compared.  agreement: share
    of inputs with the same top-1, None without a classifying output.  float_top1, int8_top1: share
    right, None without labels.  doubt: the mean entropy of the float network's softmax over that of
    a uniform one, near 1 where it cannot tell its inputs apart; None without a classifying output.
    """

    nodes: tuple[NodeError, ...]
    outputs: tuple[BlobError, ...]
    sqnr: float
    images: int
    agreement: float | None = None
    float_top1: float | None = None
    int8_top1: float | None = None
    doubt: float | None = None

    def worst(self, count: int = 5) -> list[NodeError]:
        """Return the int8 nodes that lose the most against their own inputs, worst first."""
        ranked = sorted((node for node in self.nodes if node.is_int8), key=lambda node: -node.lost)
        return ranked[:count]

    def int8_mac_share(self) -> float:
        """Share of the multiply-accumulates that run in int8."""
        total = sum(node.macs for node in self.nodes)
        return sum(node.macs for node in self.nodes if node.is_int8) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What one input contributes.

    sums: blob -> float64 (5,), see `quantjit.kernels.compare`.  top1: class index by float and by
    int8 for each row of the batch, empty without a classifying output.  doubt: of each row, see
    `Comparison`.
    """

    sums: Mapping[str, NDArray[np.float64]]
    float_top1: tuple[int, ...]
    int8_top1: tuple[int, ...]
    doubt: tuple[float, ...] = ()


def classifying_output(graph: Graph, shapes: Mapping[str, Shape]) -> str | None:
    """Return the output that is one list of scores an input, (N, classes) or (N, classes, 1, 1)."""
    for name in graph.outputs:
        shape = shapes[name]
        if len(shape) > 1 and shape[1] > 1 and math.prod(shape[2:]) == 1:
            return name
    return None


def top1(scores: Array) -> tuple[int, ...]:
    """Class index of the largest score of each row; the first of equals."""
    return tuple(int(i) for i in scores.reshape(len(scores), -1).argmax(axis=1))


def doubt(scores: Array) -> tuple[float, ...]:
    """Entropy of the softmax of each row over that of a uniform one, 0 to 1.

    Rows that are not negative and sum to 1 are taken as a softmax already.
    """
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    shares = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    is_softmax = (rows.min(axis=1) >= 0) & (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE)
    shares[is_softmax] = rows[is_softmax]
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(shares * logarithms).sum(axis=1) / math.log(rows.shape[1])
    return tuple(float(value) for value in entropy)


class Comparer:
    """Runs the float and the int8 network side by side; one thread, one `Comparer`."""

    def __init__(self, reference: Graph, quantized: Graph) -> None:
        self._reference = Executor(lower(reference))
        self._quantized = Executor(lower(quantized))
        self._scales = self._quantized.graph.scales
        self._classes = classifying_output(self._reference.graph, self._reference.shapes)
        shared = set(self._reference.graph.blobs()) & set(self._quantized.graph.blobs())
        self._shared = shared - set(self._reference.graph.constants)

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> ImageResult:
        """Compare on one batch of inputs, float32 by input name."""
        kept: dict[str, NDArray[np.float32]] = {}
        sums: dict[str, NDArray[np.float64]] = {}

        def keep(blob: str, array: Array) -> None:
            if blob in self._shared:
                kept[blob] = array.copy()

        def compare_blob(blob: str, array: Array) -> None:
            if blob in kept:
                sums[blob] = _sums(kept.pop(blob), array, self._scales.get(blob))

        expected = self._reference.run(inputs, keep)
        found = self._quantized.run(inputs, compare_blob)
        for name in self._reference.graph.outputs:
            sums[f"output:{name}"] = _sums(expected[name], found[name], None)
        if self._classes is None:
            return ImageResult(sums, (), ())
        scores = expected[self._classes]
        return ImageResult(sums, top1(scores), top1(found[self._classes]), doubt(scores))


def _sums(
    reference: NDArray[np.float32], other: Array, scale: QuantParams | None
) -> NDArray[np.float64]:
    sums = np.zeros(5, np.float64)
    if other.dtype != np.int8 or scale is None:
        compare.compare_float_into(reference.ravel(), other.ravel(), sums)
        return sums
    rows = reference.shape[0] if reference.ndim > 1 else 1
    channels = scale.scale.size if scale.per_channel else 1
    shape = (rows, channels, -1)
    compare.compare_int8_into(
        reference.reshape(shape), other.reshape(shape), scale.scale, scale.zero_point, sums
    )
    return sums


def blob_error(blob: str, sums: NDArray[np.float64]) -> BlobError:
    """Turn the five sums of a blob into its error."""
    signal, noise, product, energy, largest = (float(value) for value in sums)
    if noise == 0:
        return BlobError(blob, EXACT_SQNR, 1.0, 0.0)
    if not math.isfinite(noise):  # NaN or infinite values on either side: nothing is kept
        return BlobError(blob, -EXACT_SQNR, 0.0, math.inf)
    norm = math.sqrt(signal * energy)
    cosine = product / norm if norm > 0 else 0.0
    sqnr = 10 * math.log10(signal / noise) if signal > 0 else -EXACT_SQNR
    return BlobError(blob, min(sqnr, EXACT_SQNR), cosine, largest)


def combine(
    reference: Graph,
    quantized: Graph,
    results: Iterable[ImageResult],
    labels: Sequence[int] | None = None,
    why_float: Mapping[str, str] | None = None,
) -> Comparison:
    """Add up the results of all inputs, in their order.

    labels: class index of each row of each input, in the same order; read after the results, so
    that it may be filled while they are made.  why_float: node name ->
    reason, for the table.
    """
    totals: dict[str, NDArray[np.float64]] = {}
    float_top1: list[int] = []
    int8_top1: list[int] = []
    doubts: list[float] = []
    inputs = 0
    for result in results:
        inputs += 1
        float_top1 += result.float_top1
        int8_top1 += result.int8_top1
        doubts += result.doubt
        for blob, sums in result.sums.items():
            total = totals.setdefault(blob, np.zeros(5, np.float64))
            largest = max(total[compare.LARGEST], sums[compare.LARGEST])
            total += sums
            total[compare.LARGEST] = largest
    lowered = lower(quantized)
    errors = {blob: blob_error(blob, sums) for blob, sums in totals.items()}
    outputs = tuple(
        BlobError(name, error.sqnr, error.cosine, error.largest)
        for name in reference.outputs
        if (error := errors.get(f"output:{name}"))
    )
    together = sum((totals[f"output:{blob.blob}"] for blob in outputs), np.zeros(5, np.float64))
    images = len(float_top1) or inputs
    agreement = right_float = right_int8 = None
    if float_top1:
        agreement = _share(float_top1, int8_top1)
        if labels is not None:
            right_float, right_int8 = _share(float_top1, labels), _share(int8_top1, labels)
    return Comparison(
        _node_errors(lowered, errors, why_float or {}),
        outputs,
        blob_error("all outputs", together).sqnr,
        images,
        agreement,
        right_float,
        right_int8,
        float(np.mean(doubts)) if doubts else None,
    )


def _share(left: Sequence[int], right: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def _node_errors(
    lowered: Graph, errors: Mapping[str, BlobError], why_float: Mapping[str, str]
) -> tuple[NodeError, ...]:
    macs = count_macs(lowered, infer_shapes(lowered))
    sqnr = {blob: error.sqnr for blob, error in errors.items()}
    rows = []
    for node in lowered.nodes:
        blob = node.outputs[0]
        if node.op in {"quantize", "dequantize"}:  # the same values as their input
            sqnr[blob] = sqnr.get(node.inputs[0], EXACT_SQNR)
        if blob not in errors:
            continue
        before = min((sqnr.get(name, EXACT_SQNR) for name in node.inputs), default=EXACT_SQNR)
        # an input that nothing has touched counts as good as 16 bit, not as perfect
        lost = min(before, 96.0) - errors[blob].sqnr
        rows.append(
            NodeError(
                node.name,
                node.op,
                node.quant is not None,
                macs[node.name],
                errors[blob],
                lost,
                why_float.get(node.name, ""),
            )
        )
    return tuple(rows)

"""How far an int8 network is from its float twin, blob by blob and end to end.

SQNR = 10 log10(sum x^2 / sum (x - y)^2) in dB, the cosine of the two vectors and the largest
absolute error, over all compared inputs; top-1 agreement where an output is a list of class scores.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantjit import markup
from quantjit.executor import Executor, count_macs, infer_shapes
from quantjit.graph import Array, Graph
from quantjit.kernels import compare
from quantjit.ops import Shape
from quantjit.passes.lower import lower
from quantjit.quant import QuantParams

_SUM_TOLERANCE = 1e-3  # of the sum of a softmax

EXACT_SQNR = 200.0
"""dB reported where nothing differs."""

TOP = 5
"""Classes of an input that are kept, the most probable first."""


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

    @property
    def noise(self) -> float:
        """Noise that this node adds, over its signal (both RMS); 0 if it adds none.

        What is lost where next to nothing was wrong before, 10 dB of 60 say, is next to nothing.
        """
        before = self.error.sqnr + self.lost
        return math.sqrt(max(10 ** (-self.error.sqnr / 10) - 10 ** (-before / 10), 0.0))


@dataclass(frozen=True, slots=True)
class InputError:
    """Error of one compared input.

    file: where it comes from.  sqnr: dB over all outputs together.  float_top, int8_top: up to TOP
    (class index, share of the softmax), the most probable first; empty without a classifying
    output.  label: class index, None without labels.
    """

    file: str
    sqnr: float
    float_top: tuple[tuple[int, float], ...] = ()
    int8_top: tuple[tuple[int, float], ...] = ()
    label: int | None = None

    @property
    def agrees(self) -> bool:
        """Whether both networks have the same top-1, or there is none."""
        return [place for place, _ in self.float_top[:1]] == [p for p, _ in self.int8_top[:1]]


@dataclass(frozen=True, slots=True)
class ChannelError:
    """One channel of a blob over all compared inputs: what float had there, and how far int8 is.

    minimum, maximum, mean, std: of the float network, in real units.  zero_share: of its values
    that are exactly 0.  sqnr: dB.
    """

    blob: str
    channel: int
    minimum: float
    maximum: float
    mean: float
    std: float
    zero_share: float
    sqnr: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The evidence of one verification.

    nodes: in order of execution, those whose blob exists in both networks.  outputs: error of each
    network output.  sqnr: dB over all outputs together.  images: inputs compared.  agreement: share
    of inputs with the same top-1, None without a classifying output.  float_top1, int8_top1: share
    right, None without labels.  doubt: the mean entropy of the float network's softmax over that of
    a uniform one, near 1 where it cannot tell its inputs apart; None without a classifying output.
    inputs: each input, in order.  channels: of all blobs, empty unless they were asked for.
    """

    nodes: tuple[NodeError, ...]
    outputs: tuple[BlobError, ...]
    sqnr: float
    images: int
    agreement: float | None = None
    float_top1: float | None = None
    int8_top1: float | None = None
    doubt: float | None = None
    inputs: tuple[InputError, ...] = ()
    channels: tuple[ChannelError, ...] = ()

    def __repr__(self) -> str:
        shares = {
            "agreement": self.agreement,
            "float top-1": self.float_top1,
            "int8 top-1": self.int8_top1,
        }
        known = [f", {name} {share:.2%}" for name, share in shares.items() if share is not None]
        return f"Comparison({self.images} inputs, SQNR {self.sqnr:.1f} dB{''.join(known)})"

    def _repr_html_(self) -> str:
        return markup.table(
            repr(self),
            ("layer", "op", "int8", "SQNR dB", "lost dB", "cosine", "why float"),
            (
                (
                    node.name,
                    node.op,
                    node.is_int8,
                    round(node.error.sqnr, 1),
                    round(node.lost, 1),
                    node.error.cosine,
                    node.why_float,
                )
                for node in self.nodes
            ),
        )

    def worst(self, count: int = 5) -> list[NodeError]:
        """Return the int8 nodes that add the most noise to their signal, worst first."""
        ranked = sorted((node for node in self.nodes if node.is_int8), key=lambda node: -node.noise)
        return ranked[:count]

    def worst_inputs(self, count: int = 8) -> list[InputError]:
        """Return the inputs whose top-1 changed, then the others, each by rising SQNR."""
        ranked = sorted(self.inputs, key=lambda item: (item.agrees, item.sqnr, item.file))
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
    `Comparison`.  file: where it comes from.  float_top, int8_top: of the first row, see
    `InputError`.  channels: blob -> float64 (CHANNEL_SUMS, channels), empty unless asked for.
    """

    sums: Mapping[str, NDArray[np.float64]]
    float_top1: tuple[int, ...]
    int8_top1: tuple[int, ...]
    doubt: tuple[float, ...] = ()
    file: str = ""
    float_top: tuple[tuple[int, float], ...] = ()
    int8_top: tuple[tuple[int, float], ...] = ()
    channels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


CHANNEL_SUMS = 7
"""Minimum, maximum, values, zeros, sum, sum of squares, sum of squared errors of a channel."""


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
    shares = _softmax(scores)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(shares * logarithms).sum(axis=1) / math.log(shares.shape[1])
    return tuple(float(value) for value in entropy)


def top(scores: Array, count: int = TOP) -> tuple[tuple[int, float], ...]:
    """Class index and share of the softmax of the first row's largest scores, the largest first.

    The first of equals comes first.  Scores that are not finite have no shares: NaN.
    """
    row = scores.reshape(len(scores), -1)[0]
    with np.errstate(invalid="ignore"):
        shares = _softmax(row[None])[0]
    order = np.argsort(-row.astype(np.float64), kind="stable")[:count]
    return tuple((int(place), float(shares[place])) for place in order)


def _softmax(scores: Array) -> NDArray[np.float64]:
    """Shares of each row, float64 (rows, classes); of what is a softmax already, itself."""
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    shares: NDArray[np.float64] = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    is_softmax = (rows.min(axis=1) >= 0) & (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE)
    shares[is_softmax] = rows[is_softmax]
    return shares


class Comparer:
    """Runs the float and the int8 network side by side; one thread, one `Comparer`.

    detail: whether the channels of blobs are compared too, which takes longer.
    """

    def __init__(self, reference: Graph, quantized: Graph, *, detail: bool = False) -> None:
        self._detail = detail
        self._reference = Executor(lower(reference))
        self._quantized = Executor(lower(quantized))
        self._scales = self._quantized.graph.scales
        self._classes = classifying_output(self._reference.graph, self._reference.shapes)
        shared = set(self._reference.graph.blobs()) & set(self._quantized.graph.blobs())
        self._shared = shared - set(self._reference.graph.constants)

    def run(self, inputs: Mapping[str, NDArray[np.float32]], file: str = "") -> ImageResult:
        """Compare on one batch of inputs, float32 by input name; file: where they come from."""
        kept: dict[str, NDArray[np.float32]] = {}
        sums: dict[str, NDArray[np.float64]] = {}
        channels: dict[str, NDArray[np.float64]] = {}

        def keep(blob: str, array: Array) -> None:
            if blob in self._shared:
                kept[blob] = array.copy()

        def compare_blob(blob: str, array: Array) -> None:
            if blob in kept:
                reference, scale = kept.pop(blob), self._scales.get(blob)
                sums[blob] = _sums(reference, array, scale)
                if self._detail and reference.ndim > 1:
                    channels[blob] = _channel_sums(reference, array, scale)

        expected = self._reference.run(inputs, keep)
        found = self._quantized.run(inputs, compare_blob)
        for name in self._reference.graph.outputs:
            sums[f"output:{name}"] = _sums(expected[name], found[name], None)
        if self._classes is None:
            return ImageResult(sums, (), (), file=file, channels=channels)
        scores, others = expected[self._classes], found[self._classes]
        return ImageResult(
            sums,
            top1(scores),
            top1(others),
            doubt(scores),
            file,
            top(scores),
            top(others),
            channels,
        )


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


def _channel_sums(
    reference: NDArray[np.float32], other: Array, scale: QuantParams | None
) -> NDArray[np.float64]:
    """Return the CHANNEL_SUMS of one blob, float64 (CHANNEL_SUMS, channels); other: int8 or float.

    reference: float32 (rows, channels, ...).
    """
    rows, channels = reference.shape[:2]
    x = reference.reshape(rows, channels, -1)
    y = other.reshape(x.shape)
    if other.dtype == np.int8 and scale is not None:
        steps, zeros = scale.scale.reshape(1, -1, 1), scale.zero_point.reshape(1, -1, 1)
        y = (y.astype(np.float32) - zeros) * steps
    sums = np.zeros((CHANNEL_SUMS, channels))
    if not x.size:
        return sums
    axes = (0, 2)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (x - y).astype(np.float64)
        sums[0], sums[1] = x.min(axis=axes), x.max(axis=axes)
        sums[2], sums[3] = rows * x.shape[2], (x == 0).sum(axis=axes)
        sums[4] = x.sum(axis=axes, dtype=np.float64)
        sums[5] = np.einsum("ncs,ncs->c", x, x, dtype=np.float64)
        sums[6] = np.einsum("ncs,ncs->c", difference, difference)
    return sums


def _channel_errors(totals: Mapping[str, NDArray[np.float64]]) -> tuple[ChannelError, ...]:
    found = []
    for blob, sums in totals.items():
        for channel, each in enumerate(sums.T.tolist()):
            low, high, count, zeros, total, energy, noise = each
            mean = total / max(count, 1)
            variance = max(energy / max(count, 1) - mean * mean, 0.0)
            found.append(
                ChannelError(
                    blob,
                    channel,
                    low,
                    high,
                    mean,
                    math.sqrt(variance),
                    zeros / max(count, 1),
                    _decibels(energy, noise),
                )
            )
    return tuple(found)


def _decibels(signal: float, noise: float) -> float:
    """Return the SQNR, within -EXACT_SQNR and EXACT_SQNR."""
    if noise == 0:
        return EXACT_SQNR
    if not math.isfinite(noise) or signal <= 0:
        return -EXACT_SQNR
    return min(10 * math.log10(signal / noise), EXACT_SQNR)


def blob_error(blob: str, sums: NDArray[np.float64]) -> BlobError:
    """Turn the five sums of a blob into its error."""
    signal, noise, product, energy, largest = (float(value) for value in sums)
    if noise == 0:
        return BlobError(blob, EXACT_SQNR, 1.0, 0.0)
    if not math.isfinite(noise):  # NaN or infinite values on either side: nothing is kept
        return BlobError(blob, -EXACT_SQNR, 0.0, math.inf)
    norm = math.sqrt(signal * energy)
    cosine = product / norm if norm > 0 else 0.0
    return BlobError(blob, _decibels(signal, noise), cosine, largest)


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
    inputs: list[InputError] = []
    channels: dict[str, NDArray[np.float64]] = {}
    for result in results:
        together = _together(result.sums)
        inputs.append(InputError(result.file, together, result.float_top, result.int8_top))
        float_top1 += result.float_top1
        int8_top1 += result.int8_top1
        doubts += result.doubt
        for blob, sums in result.sums.items():
            total = totals.setdefault(blob, np.zeros(5, np.float64))
            largest = max(total[compare.LARGEST], sums[compare.LARGEST])
            total += sums
            total[compare.LARGEST] = largest
        for blob, sums in result.channels.items():
            if blob not in channels:
                channels[blob] = sums.copy()
                continue
            whole = channels[blob]
            np.minimum(whole[0], sums[0], out=whole[0])
            np.maximum(whole[1], sums[1], out=whole[1])
            whole[2:] += sums[2:]
    lowered = lower(quantized)
    errors = {blob: blob_error(blob, sums) for blob, sums in totals.items()}
    outputs = tuple(
        BlobError(name, error.sqnr, error.cosine, error.largest)
        for name in reference.outputs
        if (error := errors.get(f"output:{name}"))
    )
    images = len(float_top1) or len(inputs)
    if labels is not None and len(labels) == len(inputs):
        inputs = [replace(item, label=label) for item, label in zip(inputs, labels, strict=True)]
    agreement = right_float = right_int8 = None
    if float_top1:
        agreement = _share(float_top1, int8_top1)
        if labels is not None:
            right_float, right_int8 = _share(float_top1, labels), _share(int8_top1, labels)
    return Comparison(
        _node_errors(lowered, errors, why_float or {}),
        outputs,
        _together(totals),
        images,
        agreement,
        right_float,
        right_int8,
        float(np.mean(doubts)) if doubts else None,
        tuple(inputs),
        _channel_errors(channels),
    )


def _together(sums: Mapping[str, NDArray[np.float64]]) -> float:
    """Return the SQNR of all outputs together."""
    outputs = (each for name, each in sums.items() if name.startswith("output:"))
    return blob_error("all outputs", sum(outputs, np.zeros(5, np.float64))).sqnr


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

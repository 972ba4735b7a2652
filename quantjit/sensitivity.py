"""Which node costs what: the int8 network with one node in int8, and with all but one.

Both are made by exchanging nodes between the float network and its int8 twin, so that the scales
and codes are those of the whole int8 network and nothing is solved again.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from quantjit import markup, metrics
from quantjit.calibration import OnProgress, no_progress
from quantjit.executor import count_macs, infer_shapes
from quantjit.graph import Graph
from quantjit.judge import Judge, Score
from quantjit.metrics import Comparer, Comparison


@dataclass(frozen=True, slots=True)
class NodeSensitivity:
    """What int8 costs in one node.

    alone: end-to-end SQNR in dB when only this node is int8; without: when all others are.  macs:
    for one input.  layer_sqnr, lost: the cheap proxy, one run of the int8 network: SQNR of the blob
    that the node writes, and what is lost against its inputs; None where the runtime merges the
    node into another.
    """

    name: str
    op: str
    macs: int
    alone: float
    without: float
    layer_sqnr: float | None
    lost: float | None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Sensitivities of all int8 nodes, the most harmful first: lowest `alone`, then `without`.

    whole: the score of the whole int8 network; float_macs: of nodes that have no int8 form.
    """

    nodes: tuple[NodeSensitivity, ...]
    whole: Score
    float_macs: int

    def __repr__(self) -> str:
        worst = f", worst {self.nodes[0].name}" if self.nodes else ""
        return f"Sensitivity({len(self.nodes)} int8 nodes on {self.images} inputs{worst})"

    def _repr_html_(self) -> str:
        return markup.table(
            repr(self),
            ("layer", "op", "MACs", "alone dB", "all others dB"),
            (
                (node.name, node.op, node.macs, round(node.alone, 1), round(node.without, 1))
                for node in self.nodes
            ),
        )

    @property
    def images(self) -> int:
        """Inputs that were run."""
        return self.whole.images

    @property
    def int8_macs(self) -> int:
        """Multiply-accumulates of one input in int8 nodes."""
        return sum(node.macs for node in self.nodes)


def blend(graph: Graph, quantized: Graph, int8_nodes: Collection[str]) -> Graph:
    """Return the network in which these nodes are those of `quantized` and the others of `graph`.

    graph, quantized: the float network and its int8 twin, node by node.
    """
    nodes = tuple(
        coded if coded.name in int8_nodes and coded.quant is not None else plain
        for plain, coded in zip(graph.nodes, quantized.nodes, strict=True)
    )
    touched = {blob for node in nodes if node.quant for blob in (*node.inputs, *node.outputs)}
    scales = {blob: params for blob, params in quantized.scales.items() if blob in touched}
    return replace(quantized, nodes=nodes, scales=scales)


def measure(
    graph: Graph,
    quantized: Graph,
    judge: Judge,
    *,
    images: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Sensitivity:
    """Measure every int8 node of `quantized` on the first inputs of the judge.

    graph: the float network it was made from.
    """
    names = [node.name for node in quantized.nodes if node.quant is not None]
    everything = frozenset(names)
    total = 2 * len(names) + 1

    def networks() -> Iterator[Graph]:
        yield quantized
        for name in names:
            yield blend(graph, quantized, {name})
            yield blend(graph, quantized, everything - {name})

    scores: list[Score] = []
    for score in judge.measure_all(networks(), images):
        scores.append(score)
        on_progress("analyze", len(scores), total)
    whole, pairs = scores[0], scores[1:]
    macs = count_macs(graph, infer_shapes(graph))
    errors = {node.name: node for node in _compare(graph, quantized, judge, whole.images).nodes}
    ops = {node.name: node.op for node in graph.nodes}
    nodes = []
    for name, alone, without in zip(names, pairs[::2], pairs[1::2], strict=True):
        error = errors.get(name)
        nodes.append(
            NodeSensitivity(
                name,
                ops[name],
                macs[name],
                alone.sqnr,
                without.sqnr,
                None if error is None else error.error.sqnr,
                None if error is None else error.lost,
            )
        )
    ranked = sorted(nodes, key=lambda node: (node.alone, -node.without))
    float_macs = sum(count for name, count in macs.items() if name not in everything)
    return Sensitivity(tuple(ranked), whole, float_macs)


def _compare(graph: Graph, quantized: Graph, judge: Judge, images: int) -> Comparison:
    comparer = Comparer(graph, quantized)
    results = (comparer.run(sample.arrays) for sample in judge.samples[:images])
    return metrics.combine(graph, quantized, results)

"""From statistics to the best int8 network: scales, codes and the passes that were asked for.

Passes, in the order of `quantjit.quantizer.PASSES`:

* equalize: channels that use little of their blob's scale are made larger, see
  `quantjit.passes.equalize`;
* bias: biases take back what quantization shifts in the mean;
* rounding: weights are rounded so that the outputs of their layer are off by little; for both see
  `quantjit.rounding`.

Each is kept only where the int8 network gets closer to the float one by it, on inputs that the pass
has not seen.  What they change are weights and biases: any runtime of the format runs the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from quantjit import moments, quantizer, rounding
from quantjit.calibration import Gathering, OnProgress, no_progress
from quantjit.dataset import Collected, Sample, Samples
from quantjit.errors import DataError, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Graph
from quantjit.judge import Judge
from quantjit.moments import Moments
from quantjit.passes.equalize import equalize
from quantjit.plan import plan
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable

Stats = Mapping[str, BlobStats]

_LEARNED, _JUDGED = 16, 24  # inputs that passes learn from, and others that they are judged on
_INPUT_BYTES = 2**28  # of these in memory


@dataclass(frozen=True, slots=True)
class Effect:
    """What a pass did: end-to-end SQNR in dB before and after it, and whether it was kept."""

    name: str
    is_kept: bool
    before: float
    after: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refinement:
    """An int8 network, and how it was made.

    graph: the float network that was quantized: with the outputs of the one given, but perhaps
    with other values inside.  quantized: not yet written.
    """

    graph: Graph
    quantized: Graph
    table: CalibrationTable
    effects: tuple[Effect, ...] = ()


def refine(
    graph: Graph,
    stats: Stats | Mapping[str, ReferenceStats],
    settings: Settings,
    samples: Samples | None = None,
    *,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
    gather: Callable[[Graph, Mapping[str, int]], Stats] | None = None,
) -> Refinement:
    """Return the int8 network of these statistics and settings.

    graph: float, with its activations fused.  stats: of `quantizer.observed_blobs`.  samples: the
    inputs that the passes of the settings learn from and are judged on.  gather(graph, rows):
    statistics of another network on the same inputs, rows by blob; by default on `samples`.
    """
    table = quantizer.solve(graph, stats, settings)
    plain = Refinement(graph, quantizer.quantize(graph, table, settings), table)
    if not settings.passes or not plain.quantized.is_quantized:
        return plain
    if samples is None:
        raise UsageError("--passes learn from inputs and are judged on them: give -i")
    learned, judged = _divide(samples)
    judge = Judge(graph, judged, jobs=jobs)
    workshop = _Workshop(settings, Collected(learned), judge, jobs, on_progress)
    made = workshop.repair(plain)
    if "equalize" not in settings.passes:
        return made.refinement()
    if gather is None:
        gather = _gatherer(samples, jobs, on_progress)
    other = _equalized(graph, settings, gather)
    if other is None:
        return made.refinement()
    best = workshop.repair(other)
    is_kept = best.score > made.score
    effect = Effect("equalize", is_kept, made.score, best.score)
    if is_kept:
        made = replace(
            best, effects=(replace(effect, before=made.first, after=best.first), *best.effects)
        )
    else:
        made = replace(made, effects=(effect, *made.effects))
    return made.refinement()


@dataclass(frozen=True, slots=True)
class _Made:
    """A network on its way; score: its SQNR in dB, first: what it was before any repair."""

    base: Refinement
    quantized: Graph
    first: float
    score: float
    effects: tuple[Effect, ...] = ()

    def refinement(self) -> Refinement:
        return replace(self.base, quantized=self.quantized, effects=self.effects)


class _Workshop:
    """Repairs int8 networks: biases and rounding, each judged."""

    def __init__(
        self,
        settings: Settings,
        learned: Samples,
        judge: Judge,
        jobs: int | None,
        on_progress: OnProgress,
    ) -> None:
        self._settings, self._learned, self._judge = settings, learned, judge
        self._jobs, self._on_progress = jobs, on_progress

    def repair(self, base: Refinement) -> _Made:
        """Return the network with what of "bias" and "rounding" makes it better."""
        passes = self._settings.passes
        first = self._score([base.quantized])[0]
        made = _Made(base, base.quantized, first, first)
        wanted = [name for name in ("bias", "rounding") if name in passes]
        if not wanted:
            return made
        trials = self._trials(base, wanted)
        for name, score in zip(trials, self._score(list(trials.values())), strict=True):
            is_kept = score > made.score
            effect = Effect(name, is_kept, made.score, score)
            made = replace(made, effects=(*made.effects, effect))
            if is_kept:
                made = replace(made, quantized=trials[name], score=score)
        return made

    def _trials(self, base: Refinement, names: Sequence[str]) -> dict[str, Graph]:
        """Return the network after "bias", and after "rounding" with or without it."""
        nodes = {node.name: node for node in base.graph.nodes}
        int8 = {node.name: node for node in base.quantized.nodes}
        changed = {name: dict(int8) for name in names}
        corrects = "bias" in names

        def use(name: str, seen: Moments) -> None:
            source = base.quantized.scales[int8[name].inputs[0]]
            for trial, made in changed.items():
                rounds = trial == "rounding"
                made[name] = rounding.round_node(
                    nodes[name], int8[name], source, seen, rounds=rounds, corrects_bias=corrects
                )

        moments.gather(
            base.graph,
            base.quantized,
            self._learned,
            use,
            jobs=self._jobs,
            on_progress=self._on_progress,
        )
        return {name: rounding.with_nodes(base.quantized, made) for name, made in changed.items()}

    def _score(self, networks: Sequence[Graph]) -> list[float]:
        return [score.sqnr for score in self._judge.measure_all(networks)]


def _divide(samples: Samples) -> tuple[list[Sample], list[Sample]]:
    """Return inputs to learn from and to judge on, from files spread evenly over all.

    They are the same where there is one only.  Files that cannot be used are passed over: who
    gathered the statistics has counted them.
    """
    wanted = min(_LEARNED + _JUDGED, len(samples))
    learned: list[Sample] = []
    judged: list[Sample] = []
    left = _INPUT_BYTES
    for number in range(wanted):
        try:
            loaded = samples.load(number * len(samples) // wanted)
        except DataError:
            continue
        for sample in loaded:
            size = sum(array.nbytes for array in sample.arrays.values())
            if learned and judged and size > left:
                return learned, judged
            left -= size
            is_learned = len(learned) * _JUDGED <= len(judged) * _LEARNED
            (learned if is_learned else judged).append(sample)
    return learned, judged or learned


def _gatherer(
    samples: Samples, jobs: int | None, on_progress: OnProgress
) -> Callable[[Graph, Mapping[str, int]], Stats]:
    def gather(graph: Graph, rows: Mapping[str, int]) -> Stats:
        planned = plan(graph, rows, jobs=jobs)
        gathering = Gathering(graph, samples, rows, planned)
        gathering.run("skip", on_progress=on_progress)
        return gathering.stats

    return gather


def _equalized(
    graph: Graph, settings: Settings, gather: Callable[[Graph, Mapping[str, int]], Stats]
) -> Refinement | None:
    """Return the network with channels equalized, None where there is nothing to equalize."""
    shapes = infer_shapes(graph)
    rows = {blob: shape[1] if len(shape) > 1 else 1 for blob, shape in shapes.items()}
    is_tnn = settings.target == "tnn"
    found = equalize(
        graph,
        gather(graph, rows),
        weights="tensor" if settings.merge == "tensor" else "channel",
        symmetric=is_tnn or settings.symmetric,
    )
    if not found.groups:
        return None
    shapes = infer_shapes(found.graph)
    stats = gather(found.graph, quantizer.observed_blobs(found.graph, shapes, settings))
    table = quantizer.solve(found.graph, stats, settings)
    return Refinement(found.graph, quantizer.quantize(found.graph, table, settings), table)

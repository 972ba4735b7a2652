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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from quantjit import moments, quantizer, rounding
from quantjit.calibration import OnProgress, gatherer, no_progress
from quantjit.dataset import Collected, Sample, Samples, Stream, prefetch
from quantjit.errors import DataError, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Graph
from quantjit.judge import Judge
from quantjit.moments import Moments
from quantjit.passes.equalize import equalize
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable

Stats = Mapping[str, BlobStats]

Gather = Callable[[Graph, Mapping[str, int]], Stats]
"""Return the statistics of a network, rows by blob, on the inputs that it is calibrated on."""

# What equalization may make small, and the weight of blobs against weights.
_FOR_CHANNELS = (("both", 1.0), ("activations", 1.0))
_FOR_TENSORS = (("both", 0.1),)
_LEARNED, _JUDGED = 24, 24  # inputs that passes learn from, and others that they are judged on
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
    gather: Gather | None = None,
) -> Refinement:
    """Return the int8 network of these statistics and settings.

    graph: float, with its activations fused.  stats: of `quantizer.observed_blobs`.  samples,
    gather: see `Refiner`; needed where the settings have passes.
    """
    if not settings.passes:
        table = quantizer.solve(graph, stats, settings)
        return Refinement(graph, quantizer.quantize(graph, table, settings), table)
    if samples is None:
        raise UsageError("--passes learn from inputs and are judged on them: give -i")
    seen = {blob: each for blob, each in stats.items() if isinstance(each, BlobStats)}
    refiner = Refiner(graph, samples, jobs=jobs, on_progress=on_progress, gather=gather)
    return refiner.refine(seen, settings)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Equalized:
    """The float network with other values inside, what was made small, and statistics by kind."""

    graph: Graph
    what: str
    stats: dict[bool, Stats] = field(default_factory=dict)


class Refiner:
    """Applies passes to int8 networks of one float network; what they share is made once.

    Parameters
    ----------
    graph : float, with its activations fused
    samples : the inputs that passes learn from: some, spread evenly over them
    judge : what passes are judged by; by default some other of these inputs
    jobs : threads, by default one a core
    on_progress : told of inputs that are run through
    gather : statistics of an equalized network; by default of all `samples`
    """

    def __init__(
        self,
        graph: Graph,
        samples: Samples,
        *,
        judge: Judge | None = None,
        jobs: int | None = None,
        on_progress: OnProgress = no_progress,
        gather: Gather | None = None,
    ) -> None:
        learned, judged = divide(samples, _JUDGED if judge is None else 0)
        self._graph, self._learned = graph, Collected(learned)
        self._judge = judge or Judge(graph, judged, jobs=jobs)
        self._jobs, self._on_progress = jobs, on_progress
        self._gather = gather or gatherer(samples, "skip", jobs=jobs, on_progress=on_progress)
        self._gather_learned = gatherer(self._learned, "skip", jobs=jobs)
        self._variants: dict[tuple[bool, bool], tuple[_Equalized, ...]] = {}
        self._chosen: dict[tuple[str, bool], _Equalized | None] = {}

    def refine(self, stats: Stats, settings: Settings) -> Refinement:
        """Return the int8 network of statistics and settings, with the passes that help it.

        stats: of `quantizer.observed_blobs` for the float network, or with more rows.  Whether
        equalization helps is found out with the first settings of a granularity and then known.
        """
        symmetric = settings.target == "tnn" or settings.symmetric
        plain = self._solve(self._graph, stats, settings)
        if not plain.quantized.is_quantized:
            return plain
        if "equalize" not in settings.passes:
            return self._repair(plain, settings).refinement()
        if (settings.merge, symmetric) not in self._chosen:
            return self._choose(plain, stats, settings, symmetric=symmetric).refinement()
        found = self._chosen[settings.merge, symmetric]
        if found is None:
            return self._repair(plain, settings).refinement()
        made = self._repair(self._solve_equalized(found, settings), settings)
        before = self._score([plain.quantized])[0]
        effect = Effect(
            "equalize", is_kept=True, before=before, after=made.first, detail=found.what
        )
        return replace(made, effects=(effect, *made.effects)).refinement()

    def _choose(
        self, plain: Refinement, stats: Stats, settings: Settings, *, symmetric: bool
    ) -> _Made:
        """Return the best of the network as it is and equalized, and keep in mind which it is."""
        made = self._repair(plain, settings)
        chosen: _Equalized | None = None
        tried: list[Effect] = []
        first, start = made.first, made.score
        is_tensor = settings.merge == "tensor"
        for found in self._equalized(stats, is_tensor=is_tensor, symmetric=symmetric):
            other = self._repair(self._solve_equalized(found, settings), settings)
            if other.score > made.score:
                effect = Effect("equalize", True, first, other.first, found.what)
                made = replace(other, effects=(effect, *other.effects))
                chosen = found
            else:
                tried.append(Effect("equalize", False, start, other.score, found.what))
            if chosen is not found:  # statistics a channel are large
                found.stats.pop(settings.merge == "channel", None)
        if chosen is None:
            made = replace(made, effects=(*tried, *made.effects))
        self._chosen[settings.merge, symmetric] = chosen
        return made

    def _solve_equalized(self, found: _Equalized, settings: Settings) -> Refinement:
        is_channel = settings.merge == "channel"
        if is_channel not in found.stats:
            rows = quantizer.observed_blobs(found.graph, infer_shapes(found.graph), settings)
            found.stats[is_channel] = self._gather(found.graph, rows)
        return self._solve(found.graph, found.stats[is_channel], settings)

    def _solve(self, graph: Graph, stats: Stats, settings: Settings) -> Refinement:
        rows = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
        fitting = {
            blob: stats[blob] if stats[blob].channels == count else stats[blob].per_tensor()
            for blob, count in rows.items()
        }
        table = quantizer.solve(graph, fitting, settings)
        return Refinement(graph, quantizer.quantize(graph, table, settings), table)

    def _equalized(
        self, stats: Stats, *, is_tensor: bool, symmetric: bool
    ) -> tuple[_Equalized, ...]:
        """Return the network with its channels equalized in several ways."""
        if (is_tensor, symmetric) not in self._variants:
            shapes = infer_shapes(self._graph)
            rows = {blob: shape[1] if len(shape) > 1 else 1 for blob, shape in shapes.items()}
            seen = dict(self._gather_learned(self._graph, rows))
            seen |= {blob: each for blob, each in stats.items() if each.channels == rows[blob]}
            weights, ways = ("tensor", _FOR_TENSORS) if is_tensor else ("channel", _FOR_CHANNELS)
            made = []
            for what, strength in ways:
                found = equalize(
                    self._graph,
                    seen,
                    what=what,
                    weights=weights,
                    symmetric=symmetric,
                    strength=strength,
                )
                if found.groups:
                    made.append(_Equalized(found.graph, what))
            self._variants[is_tensor, symmetric] = tuple(made)
        return self._variants[is_tensor, symmetric]

    def _repair(self, base: Refinement, settings: Settings) -> _Made:
        """Return the network with what of "bias" and "rounding" makes it better."""
        wanted = [name for name in ("bias", "rounding") if name in settings.passes]
        trials = self._trials(base, wanted) if wanted else {}
        first, *scores = self._score([base.quantized, *trials.values()])
        made = _Made(base, base.quantized, first, first)
        for name, score in zip(trials, scores, strict=True):
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


def divide(samples: Samples, judging: int = _JUDGED) -> tuple[list[Sample], list[Sample]]:
    """Return inputs to learn from and so many to judge on, from files spread evenly over all.

    They are the same where there is one only.  Files that cannot be used are passed over: who
    gathered the statistics has counted them.
    """
    learned: list[Sample] = []
    judged: list[Sample] = []
    left = _INPUT_BYTES
    for sample in _spread(samples, _LEARNED + judging):
        size = sum(array.nbytes for array in sample.arrays.values())
        if learned and (judged or not judging) and size > left:
            break
        left -= size
        is_learned = len(learned) * judging <= len(judged) * _LEARNED
        (learned if is_learned else judged).append(sample)
    return learned, judged or learned


def _spread(samples: Samples, count: int) -> Iterator[Sample]:
    """Yield the inputs of so many files, spread over all; of a stream, the first ones."""
    if isinstance(samples, Stream):
        yield from islice(prefetch(samples), count)
        return
    wanted = min(count, len(samples))
    for number in range(wanted):
        try:
            yield from samples.load(number * len(samples) // wanted)
        except DataError:
            continue

"""Which settings suit a network: every candidate from one pass, judged on held-out inputs.

A part of the inputs, chosen by their names, is kept out of the statistics.  Every combination of
blob method, weight method and granularity that the target can express is solved and run on it, by
successive halving: all of them on a few inputs, the best on more, the last on all.  Passes are slow
and are tried on the best few only.  What won is written as it was measured: its scales come from
the inputs that were not held out.
"""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantjit import calibration as evidence
from quantjit import cluster as clusters
from quantjit import markup, mixed, pipeline, quantizer, solvers
from quantjit.calibration import Calibration, Gathering, OnProgress, no_progress
from quantjit.dataset import Collected, Dataset, Sample, Samples, prefetch, rank
from quantjit.errors import DataError, QuantJitError, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Graph
from quantjit.images import Preprocess
from quantjit.judge import Judge, Score, Tally, Target
from quantjit.metrics import EXACT_SQNR
from quantjit.mixed import Mixed
from quantjit.ops import Shape
from quantjit.pipeline import Inputs, Quantization, Writing
from quantjit.plan import plan, threads_to_verify
from quantjit.quantizer import Memo, Settings
from quantjit.refine import Gather, Refinement, Refiner
from quantjit.statistics_file import StatisticsFile
from quantjit.stats import BlobStats

HELD_OUT_SHARE, FEW_HELD_OUT, MOST_HELD_OUT = 0.2, 8, 64
"""How much of the inputs is held out: this share of their number, but of few inputs up to a third
until there are so many, and never more than the last.
"""

_HELD_OUT_BYTES = 2**28  # of inputs and outputs in memory
_ROUNDS = (0.15, 0.4)  # of the held-out inputs, before the round on all of them
_KEPT = (0.2, 0.4)  # of the candidates after each of these rounds
_LEAST_KEPT = (8, 3)
_PASSED = 3  # candidates to which passes are applied


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that were tried, best first in what `search` returns.

    sqnr in dB, agreement, top1: on `images` held-out inputs, see `quantjit.judge.Score`.  seconds:
    of making and running it.  round: the last that it reached, from 1.  verdict: in words.
    """

    settings: Settings
    sqnr: float
    agreement: float | None
    top1: float | None
    images: int
    seconds: float
    round: int
    verdict: str
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Best:
    """The winner: its settings, its network, its score on all held-out inputs."""

    settings: Settings
    refined: Refinement
    score: Score


@dataclass(frozen=True, slots=True)
class Tuned:
    """Everything that `run` made.

    settings: that won, with the nodes that were left float.  candidates: best first.  held_out:
    inputs that the candidates were scored on.  seconds: of the search alone.
    """

    quantization: Quantization
    settings: Settings
    candidates: tuple[Candidate, ...]
    held_out: int
    seconds: float

    def __repr__(self) -> str:
        best = self.candidates[0]
        return (
            f"Tuned({best.settings}: {best.sqnr:.1f} dB on {self.held_out} held-out inputs, "
            f"{len(self.candidates)} settings tried)"
        )

    def _repr_html_(self) -> str:
        return self.quantization._repr_html_() + markup.table(
            repr(self),
            ("blobs", "weights", "scales", "passes", "SQNR dB", "agrees", "inputs", ""),
            (
                (
                    each.settings.blob_method,
                    each.settings.weight_method,
                    each.settings.merge,
                    ", ".join(each.settings.passes),
                    round(each.sqnr, 2),
                    each.agreement,
                    each.images,
                    each.verdict,
                )
                for each in self.candidates
            ),
        )

    @property
    def default(self) -> Candidate:
        """The setting that the original has by default."""
        return next(each for each in self.candidates if each.is_default)


# ------------------------------------------------------------------ candidates


def default_settings(settings: Settings) -> Settings:
    """Return the original's default, min-max with scales per channel, as the target has it."""
    merge = "channel" if settings.target == "tnn" else "mix"
    return replace(settings, blob_method="minmax", weight_method="minmax", merge=merge, passes=())


def candidates(settings: Settings, *, zero_points: bool = False) -> tuple[Settings, ...]:
    """Return all settings that the target can express, the original's default first.

    settings: what is not tried out: target, activations, nodes to keep float.  zero_points: for
    TNN, also methods with zero points, which its naive device honours and others ignore.
    """
    takes_all = zero_points and settings.target == "tnn"
    blobs = [s.name for s in solvers.blob_solvers().values() if s.symmetric or takes_all]
    weights = [s.name for s in solvers.weight_solvers().values() if s.symmetric or takes_all]
    merges = quantizer.MERGES if settings.target == "tnn" else quantizer.MERGES[1:]
    first = default_settings(settings)
    grid = [
        replace(first, blob_method=blob, weight_method=weight, merge=merge)
        for merge in merges
        for blob in sorted(blobs)
        for weight in sorted(weights)
    ]
    return tuple(dict.fromkeys([first, *grid]))


# ------------------------------------------------------------------ the search


@dataclass(slots=True)
class _Entry:
    """A candidate on its way through the rounds; refined: kept only where passes made it."""

    settings: Settings
    order: int
    tally: Tally = field(default_factory=Tally.empty)
    refined: Refinement | None = None
    score: Score | None = None
    seconds: float = 0.0
    round: int = 0
    verdict: str = ""
    is_default: bool = False

    def key(self) -> tuple[int, float, float, float, int]:
        """Return what candidates are sorted by, best first: the last round before the others."""
        if self.score is None:
            return 0, 0.0, 0.0, 0.0, self.order
        agreement, top1 = self.score.agreement or 0.0, self.score.top1 or 0.0
        return -self.round, -self.score.sqnr, -agreement, -top1, self.order

    def result(self) -> Candidate:
        score = self.score or Score(-EXACT_SQNR, None, None, None, 0)
        return Candidate(
            self.settings,
            score.sqnr,
            score.agreement,
            score.top1,
            score.images,
            self.seconds,
            self.round,
            self.verdict,
            self.is_default,
        )


class _Maker:
    """Makes networks from one evidence, each part of them once."""

    def __init__(
        self,
        graph: Graph,
        stats: Mapping[str, BlobStats],
        refiner: Refiner | None,
        memory: int | None,
    ) -> None:
        self._graph, self._stats, self._refiner = graph, stats, refiner
        self._shapes = infer_shapes(graph)
        self._per_tensor: dict[str, BlobStats] = {}
        self._memo = Memo() if memory is None else Memo(min(memory // 8, 2**28))

    def can_solve(self, settings: Settings) -> bool:
        """Whether the statistics have the rows that these settings need."""
        return all(
            blob in self._stats and rows in {1, self._stats[blob].channels}
            for blob, rows in self._rows(settings).items()
        )

    def make(self, settings: Settings) -> Refinement:
        """Return the int8 network of these settings."""
        stats = {blob: self._seen(blob, rows) for blob, rows in self._rows(settings).items()}
        if settings.passes and self._refiner is not None:
            return self._refiner.refine(stats, settings)
        table = quantizer.solve(self._graph, stats, settings, self._memo)
        quantized = quantizer.quantize(self._graph, table, settings, self._memo)
        return Refinement(self._graph, quantized, table)

    def _rows(self, settings: Settings) -> dict[str, int]:
        return quantizer.observed_blobs(self._graph, self._shapes, settings)

    def _seen(self, blob: str, rows: int) -> BlobStats:
        seen = self._stats[blob]
        if seen.channels == rows:
            return seen
        if blob not in self._per_tensor:
            self._per_tensor[blob] = seen.per_tensor()
        return self._per_tensor[blob]


def search(
    graph: Graph,
    stats: Mapping[str, BlobStats],
    settings: Settings,
    held_out: Samples | Judge,
    *,
    samples: Samples | None = None,
    labels: Mapping[str, int] | None = None,
    zero_points: bool = False,
    passes: tuple[str, ...] = quantizer.PASSES,
    jobs: int | None = None,
    memory: int | None = None,
    on_progress: OnProgress = no_progress,
    gather: Gather | None = None,
) -> tuple[Best, tuple[Candidate, ...]]:
    """Find the settings that keep the most on held-out inputs.

    graph: float, with its activations fused.  stats: of `blobs_to_gather`, without the held-out
    inputs; where they are per tensor, no candidate has scales of blobs per channel.  settings:
    what is not tried out, see `candidates`.  samples: the inputs that passes measure on.  passes:
    those that are applied to the best few.  memory: of the process; an eighth of it is for codes
    of weights that several candidates share.  gather: see `refine.Refiner`.  The best is never
    worse than the original's default, which is measured on all held-out inputs too.
    """
    if settings.compat:
        raise UsageError("--compat tnn has its settings from TNN's tool: there is nothing to tune")
    if isinstance(held_out, Judge):
        judge = held_out
    else:
        judge = Judge(graph, list(prefetch(held_out)), labels, jobs=jobs)
    refiner = None
    if passes and samples is not None:
        refiner = Refiner(
            graph, samples, judge=judge, jobs=jobs, on_progress=on_progress, gather=gather
        )
    maker = _Maker(graph, stats, refiner, memory)
    entries = [
        _Entry(each, order)
        for order, each in enumerate(candidates(settings, zero_points=zero_points))
        if maker.can_solve(each)
    ]
    if not entries:
        raise DataError("statistics", "they lack blobs of this network")
    entries[0].is_default = True
    rounds = _Rounds(maker, judge, on_progress)
    everyone, left = list(entries), entries
    lengths = _lengths(len(judge))
    for number, length in enumerate(lengths, 1):
        rounds.run(left, length, number)
        if number < len(lengths):
            left = _kept(left, number)
    if refiner is not None:
        tried = [
            _Entry(replace(each.settings, passes=passes), len(everyone) + place)
            for place, each in enumerate(_to_pass(everyone))
        ]
        improved = rounds.passed(tried)
        everyone += improved
        left = [*left, *improved]
        rounds.run(improved, lengths[-1], len(lengths))
    everyone.sort(key=_Entry.key)
    winner = everyone[0]
    if winner.score is None:
        raise DataError("candidates", f"none could be made; {winner.verdict}")
    for entry in left:
        entry.verdict = entry.verdict or "last round"
    winner.verdict = "chosen"
    best = Best(winner.settings, winner.refined or maker.make(winner.settings), winner.score)
    return best, tuple(entry.result() for entry in everyone)


def blobs_to_gather(graph: Graph, settings: Settings, *, channel: bool = True) -> dict[str, int]:
    """Return blob name -> rows of the statistics that all candidates together need."""
    shapes, first = infer_shapes(graph), default_settings(settings)
    blobs = quantizer.observed_blobs(graph, shapes, replace(first, merge="mix"))
    if first.merge == "channel" and channel:
        blobs |= quantizer.observed_blobs(graph, shapes, first)
    return blobs


def _lengths(inputs: int) -> list[int]:
    """Return how many inputs each round has."""
    early = {max(2, round(inputs * share)) for share in _ROUNDS}
    return [*sorted(length for length in early if length < inputs), inputs]


def _kept(entries: Sequence[_Entry], number: int) -> list[_Entry]:
    """Return the best after the round of this number, and the default."""
    ranked = sorted((entry for entry in entries if entry.score), key=_Entry.key)
    count = max(_LEAST_KEPT[number - 1], round(len(ranked) * _KEPT[number - 1]))
    kept = ranked[:count] + [entry for entry in ranked[count:] if entry.is_default]
    for entry in ranked:
        if entry not in kept:
            entry.verdict = f"out after round {number}"
    return kept


def _to_pass(entries: Sequence[_Entry]) -> list[_Entry]:
    """Return the best of each granularity of blobs, then of each way to scale them.

    With weights that fit and channels of one size it is these that matter, and not as before.
    """
    best: dict[tuple[str, bool], _Entry] = {}
    for entry in sorted((each for each in entries if each.score), key=_Entry.key):
        best.setdefault((entry.settings.blob_method, entry.settings.merge == "channel"), entry)
    first = {is_channel: entry for (_, is_channel), entry in reversed(best.items())}
    chosen = sorted(first.values(), key=_Entry.key)
    chosen += [entry for entry in best.values() if entry not in chosen]
    return chosen[:_PASSED]


class _Rounds:
    """Measures candidates: made one after the other, as kernels that solve need, run in threads."""

    def __init__(self, maker: _Maker, judge: Judge, on_progress: OnProgress) -> None:
        self._maker, self._judge, self._on_progress = maker, judge, on_progress
        self._done = self._total = 0

    def passed(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Make candidates with passes; return those in which a pass was kept."""
        improved = []
        for entry in entries:
            start = time.perf_counter()
            try:
                refined = self._maker.make(entry.settings)
            except QuantJitError:
                continue
            entry.seconds += time.perf_counter() - start
            if any(effect.is_kept for effect in refined.effects):
                entry.refined = refined
                improved.append(entry)
        return improved

    def run(self, entries: Sequence[_Entry], length: int, number: int) -> None:
        """Measure candidates up to so many inputs, in the round of this number."""
        self._total += len(entries)
        under_way: deque[tuple[_Entry, Future[float]]] = deque()
        with ThreadPoolExecutor(self._judge.jobs) as pool:
            for entry in entries:
                start = time.perf_counter()
                try:
                    refined = entry.refined or self._maker.make(entry.settings)
                except QuantJitError as error:
                    entry.verdict = f"cannot be made: {error}"
                    self._total -= 1
                    continue
                entry.seconds += time.perf_counter() - start
                future = pool.submit(self._measure, entry, refined.quantized, length)
                under_way.append((entry, future))
                while len(under_way) > self._judge.jobs:
                    self._settle(*under_way.popleft(), number)
            while under_way:
                self._settle(*under_way.popleft(), number)

    def _measure(self, entry: _Entry, network: Graph, length: int) -> float:
        start = time.perf_counter()
        entry.tally = self._judge.measure(network, length, entry.tally)
        return time.perf_counter() - start

    def _settle(self, entry: _Entry, future: Future[float], number: int) -> None:
        entry.seconds += future.result()
        entry.round = number
        entry.score = self._judge.score(entry.tally)
        self._done += 1
        self._on_progress("tune", self._done, self._total)


# ------------------------------------------------------------------ files


def run(
    proto: Path,
    model: Path | None,
    input_path: Path,
    settings: Settings,
    *,
    inputs: Inputs | None = None,
    output: Path = Path("model_quantized.tnnproto"),
    labels: Path | None = None,
    verify_inputs: int = 16,
    jobs: int | None = None,
    memory: int | None = None,
    batch: int | None = None,
    nonfinite: str = "fail",
    on_progress: OnProgress = no_progress,
    shapes: Mapping[str, Shape] | None = None,
    form: str = "qdq",
    float_fallback: bool = True,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    statistics: Path | None = None,
    zero_points: bool = False,
    passes: tuple[str, ...] = quantizer.PASSES,
    cluster: str | None = None,
) -> Tuned:
    """Find the best settings for a network, and write it with them.

    settings: target, activations and nodes to keep float; its methods are ignored.  Of the inputs a
    part is held out, see `divide`; the written network is the one that was measured on it, with
    the scales of the others.  min_sqnr, max_drop: leave layers float until the held-out inputs meet
    them.  statistics: a file of `quantjit calibrate`; held out are then inputs that are not in it,
    where there are such.  verify_inputs: of the held-out inputs, how many the written network is
    compared on.  zero_points, passes: see `search`; cluster: whose workers gather the statistics;
    the others as in `pipeline.run`.
    """
    inputs = inputs or Inputs()
    if settings.compat:
        raise UsageError("--compat tnn has its settings from TNN's tool: there is nothing to tune")
    graph, notes = pipeline.prepare(
        proto, model, settings, output, shapes=shapes, float_fallback=float_fallback
    )
    known = pipeline.read_labels(labels) if labels is not None else None
    dataset = inputs.open(input_path, graph)
    blobs = infer_shapes(graph)
    output_bytes = sum(4 * math.prod(blobs[name]) for name in graph.outputs)
    rest, held_out, said = divide(dataset, statistics, output_bytes)
    if statistics is not None:
        calibration = _from_file(statistics, graph, settings, inputs.preprocess)
    else:
        rows = blobs_to_gather(graph, settings)
        planned = plan(graph, rows, memory=memory, jobs=jobs, batch=batch)
        if cluster is not None and isinstance(rest, Dataset):
            origin = evidence.origin_of(graph, inputs.preprocess)
            _, calibration = clusters.calibrate(
                cluster,
                graph,
                rest,
                rows,
                planned,
                origin,
                nonfinite=nonfinite,
                on_progress=on_progress,
            )
        else:
            gathering = Gathering(graph, rest, rows, planned)
            calibration = gathering.run(nonfinite, on_progress=on_progress)
    kept = list(prefetch(held_out))[:MOST_HELD_OUT]
    for part in (rest, held_out):
        if isinstance(part, Dataset):
            for error in part.skipped:
                dataset.skip(error)
    start = time.perf_counter()
    if memory is not None:
        channels = {blob: seen.channels for blob, seen in calibration.stats.items()}
        fitting = threads_to_verify(graph, channels, memory)
        jobs = min(fitting, jobs or fitting)
    judge = Judge(graph, kept, known, jobs=jobs)
    stats = {b: s for b, s in calibration.stats.items() if isinstance(s, BlobStats)}
    best, tried = search(
        graph,
        stats,
        settings,
        judge,
        samples=rest,
        zero_points=zero_points,
        passes=passes,
        jobs=jobs,
        memory=memory,
        on_progress=on_progress,
        gather=evidence.gatherer(
            rest, nonfinite, jobs=jobs, batch=batch, memory=memory, on_progress=on_progress
        ),
    )
    found: Mixed | None = None
    refined, chosen = best.refined, best.settings
    target = Target(min_sqnr, max_drop)
    if target:
        found = mixed.search(refined, chosen, target, judge, on_progress=on_progress)
        chosen = found.settings
        refined = replace(refined, quantized=found.quantized, table=found.table)
    seconds = time.perf_counter() - start
    checked = kept if target else kept[:verify_inputs]
    quantization = pipeline.finish(
        Writing(proto, model, output, form, statistics),
        refined,
        chosen,
        calibration,
        dataset,
        Collected(checked) if verify_inputs else None,
        labels=known,
        jobs=jobs,
        memory=memory,
        on_progress=on_progress,
        notes=(*notes, *said),
        found=found,
    )
    return Tuned(quantization, chosen, tried, len(kept), seconds)


def divide(
    dataset: Dataset, statistics: Path | None = None, output_bytes: int = 0
) -> tuple[Samples, Samples, list[str]]:
    """Return the inputs for statistics, those that are held out, and what is to be said of it.

    Held out are those whose names come first by their SHA-256: neither order nor names of the
    others matter.  statistics: none of the inputs is needed for them; held out are inputs that are
    not in the file.  output_bytes: what is kept beside each input.
    """
    room = _HELD_OUT_BYTES // (dataset.input_bytes + output_bytes)
    room = max(1, min(MOST_HELD_OUT, room))
    if statistics is not None:
        known = {record.name for record in StatisticsFile.load(statistics).inputs}
        fresh = [file for file in dataset.files if file.name not in known]
        if fresh:
            return (*dataset.divided(min(len(fresh), room), fresh), [])
        return (
            *dataset.divided(min(len(dataset), room)),
            ["all inputs are in the statistics too: none is held out"],
        )
    if len(dataset) > 1:
        return (*dataset.divided(min(held_out_of(len(dataset)), room)), [])
    samples = list(dataset)
    if len(samples) == 1:
        one = Collected(samples)
        return one, one, ["one input: it is in the statistics and measured on"]
    count = min(held_out_of(len(samples)), room)
    chosen = sorted(range(len(samples)), key=lambda i: rank(Path(samples[i].file).name))[:count]
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for index, sample in enumerate(samples):
        parts[index in chosen].append(sample)
    return Collected(parts[0]), Collected(parts[1]), []


def held_out_of(inputs: int) -> int:
    """Return how many of so many inputs are held out."""
    return max(1, round(inputs * HELD_OUT_SHARE), min(FEW_HELD_OUT, inputs // 3))


def _from_file(path: Path, graph: Graph, settings: Settings, preprocess: Preprocess) -> Calibration:
    """Return the evidence of a file for all candidates; per tensor where it has no more."""
    first = default_settings(settings)
    found = evidence.from_file(path, graph, replace(first, merge="mix"), preprocess)
    if first.merge == "mix":
        return found
    try:
        more = evidence.from_file(path, graph, first, preprocess)
    except DataError:
        return found
    stats: dict[str, BlobStats] = {}
    for each in (found, more):
        stats |= {blob: s for blob, s in each.stats.items() if isinstance(s, BlobStats)}
    return replace(found, stats=stats)

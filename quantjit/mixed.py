"""Mixed precision: which layers stay float so that a target is met, with the fewest MACs in float.

Sensitivities give the order, runs of the real network on the judge's inputs the verdict:

1. for each of a few orders (by what a node alone buys per MAC, by its noise per MAC, from either
   end of the network) the shortest beginning whose nodes have to be float is found by bisection;
2. of the two with the fewest MACs in float, every node is tried in int8 again, the dearest first.

Nodes that the runtime ties together (ReLU and pooling behind a float layer, adds that it would
merge wrongly) follow by `quantizer.choose_nodes`, so that what is measured can be written as it is.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from quantjit import quantizer, sensitivity
from quantjit.calibration import OnProgress, no_progress
from quantjit.errors import UsageError
from quantjit.executor import count_macs, infer_shapes
from quantjit.graph import Graph
from quantjit.judge import Judge, Score, Target, noise
from quantjit.quantizer import Settings
from quantjit.refine import Refinement
from quantjit.sensitivity import Sensitivity, blend
from quantjit.table import CalibrationTable

T = TypeVar("T")

_SHRUNK = 2  # orders whose result is tried to be made smaller
_ORDERING_INPUTS = 8  # on which sensitivities are measured: they only give orders


@dataclass(frozen=True, slots=True)
class Bought:
    """A node that became float: what it would cost to have it in int8 again.

    macs: of it and of what follows it.  lost: dB that are lost end to end with it back in int8.
    """

    name: str
    op: str
    macs: int
    lost: float


@dataclass(frozen=True, slots=True)
class Mixed:
    """A network of int8 and float nodes.

    quantized, table, settings: of the network; settings name its float nodes.  before, after:
    scores of the int8 network and of this one.  missed: what target is missed even so, in words.
    bought: the nodes that were chosen, dearest first; nodes that follow them are in the table.
    """

    quantized: Graph
    table: CalibrationTable
    settings: Settings
    target: Target
    before: Score
    after: Score
    bought: tuple[Bought, ...]
    int8_macs: int
    macs: int
    trials: int
    missed: str = ""


def search(
    refined: Refinement,
    settings: Settings,
    target: Target,
    judge: Judge,
    *,
    on_progress: OnProgress = no_progress,
) -> Mixed:
    """Leave the fewest MACs in float that meet the target on the inputs of the judge.

    refined: the int8 network, of these settings, which are not those of `compat`.  Where even the
    least int8 does not meet it, the best network that was found is returned, and says what it
    misses.
    """
    if settings.compat:
        raise UsageError("nodes cannot be exchanged in the arithmetic of --compat tnn")
    trials = _Trials(refined, settings, target, judge, on_progress)
    start = trials.take(frozenset())
    if not start.missed:
        return trials.result(start, start)
    levers = trials.levers()
    ranked = sensitivity.measure(
        refined.graph,
        refined.quantized,
        judge,
        images=min(len(judge), _ORDERING_INPUTS),
        on_progress=on_progress,
    )
    found = trials.each(trials.shortest, _orders(levers, ranked))
    meeting = sorted((each for each in found if not each.missed), key=_cost)
    if not meeting:
        best = min(trials.taken.values(), key=lambda each: (-each.score.sqnr, *_cost(each)))
        return trials.result(start, best)
    shrunk = trials.each(trials.shrunk, meeting[:_SHRUNK])
    return trials.result(start, min(shrunk, key=_cost))


@dataclass(frozen=True, slots=True)
class _Trial:
    """A choice that was measured: asked, the nodes that were chosen; all that are float follow."""

    asked: frozenset[str]
    floats: frozenset[str]
    float_macs: int
    score: Score = field(compare=False)
    missed: str


def _cost(trial: _Trial) -> tuple[int, int, list[str]]:
    return trial.float_macs, len(trial.floats), sorted(trial.floats)


def _orders(levers: Sequence[str], ranked: Sensitivity) -> list[list[str]]:
    """Return orders in which nodes become float; without MACs nothing is dear."""
    known = {node.name: node for node in ranked.nodes}
    place = {name: index for index, name in enumerate(levers)}
    whole = noise(ranked.whole.sqnr)

    def by(worth: Callable[[str], float]) -> list[str]:
        return sorted(levers, key=lambda name: (-worth(name), place[name]))

    return [
        by(lambda name: (whole - noise(known[name].without)) / (known[name].macs or 1)),
        by(lambda name: noise(known[name].alone) / (known[name].macs or 1)),
        list(levers),
        list(reversed(levers)),
    ]


class _Trials:
    """Networks of one search, each measured once."""

    def __init__(
        self,
        refined: Refinement,
        settings: Settings,
        target: Target,
        judge: Judge,
        on_progress: OnProgress,
    ) -> None:
        self._refined, self._settings = refined, settings
        self._target, self._judge, self._on_progress = target, judge, on_progress
        graph = refined.graph
        self._macs = count_macs(graph, infer_shapes(graph))
        self._never = frozenset(node.name for node in refined.quantized.nodes if node.quant is None)
        self.taken: dict[frozenset[str], _Trial] = {}
        self._is_stopped = False
        count = len(self.levers())
        self._most = 4 * (count.bit_length() + 1) + 2 * _SHRUNK * count  # trials, about

    def levers(self) -> list[str]:
        """Return the int8 nodes to choose from, in the order of the network.

        ReLU and pooling, which follow their producers, have no MACs and are none of them.
        """
        return [
            node.name
            for node in self._refined.quantized.nodes
            if node.quant is not None and (self._macs[node.name] or node.op in {"add", "concat"})
        ]

    def reasons(self, asked: frozenset[str]) -> dict[str, str]:
        """Return node name -> why it is float, with all that follows from the choice.

        What was float in the whole int8 network has no codes and stays so.
        """
        floats = tuple(sorted(asked | (self._never - set(self._settings.float_nodes))))
        wanted = (*self._settings.float_nodes, *floats)
        found = quantizer.choose_nodes(
            self._refined.graph, replace(self._settings, float_nodes=wanted)
        )
        known = self._refined.table.float_nodes
        return {name: known.get(name, reason) for name, reason in found.items() if reason}

    def take(self, asked: frozenset[str]) -> _Trial:
        """Measure the network in which these nodes are float, and what follows them."""
        if self._is_stopped:
            raise InterruptedError
        floats = frozenset(self.reasons(asked))
        known = self.taken.get(floats)
        if known is not None:
            return replace(known, asked=asked)
        network = self.network(floats)
        score = self._judge.score(self._judge.measure(network))
        macs = sum(self._macs[name] for name in floats)
        trial = _Trial(asked, floats, macs, score, self._target.missed(score))
        self.taken[floats] = trial
        self._on_progress("mixed", min(len(self.taken), self._most), self._most)
        return trial

    def each(self, work: Callable[[T], _Trial], items: Sequence[T]) -> list[_Trial]:
        """Return the trials that come of each item, several at once; Ctrl-C ends all of them."""
        with ThreadPoolExecutor(self._judge.jobs) as pool:
            try:
                return list(pool.map(work, items))
            except BaseException:
                self._is_stopped = True
                raise

    def network(self, floats: frozenset[str]) -> Graph:
        """Return the network with these nodes in float."""
        names = {node.name for node in self._refined.graph.nodes}
        return blend(self._refined.graph, self._refined.quantized, names - floats)

    def shortest(self, order: Sequence[str]) -> _Trial:
        """Return the shortest beginning of the order that meets the target, by bisection."""
        low, high = 0, len(order)  # `low` nodes miss it
        best = self.take(frozenset(order))
        while high - low > 1 and not best.missed:
            middle = (low + high) // 2
            trial = self.take(frozenset(order[:middle]))
            if trial.missed:
                low = middle
            else:
                high, best = middle, trial
        return best

    def shrunk(self, trial: _Trial) -> _Trial:
        """Put back into int8 what the target does not need, the most MACs first, until all is."""
        before = None
        while before != trial.asked:
            before = trial.asked
            for name in sorted(before, key=lambda name: (-self._macs[name], name)):
                fewer = self.take(trial.asked - {name})
                if not fewer.missed and fewer.float_macs <= trial.float_macs:
                    trial = fewer
        return trial

    def result(self, start: _Trial, trial: _Trial) -> Mixed:
        """Return a trial as a network, with what each of its float nodes bought."""
        bought = []
        if trial.asked:
            for name in trial.asked:
                fewer = self.take(trial.asked - {name})
                macs = trial.float_macs - fewer.float_macs
                lost = trial.score.sqnr - fewer.score.sqnr
                op = next(node.op for node in self._refined.graph.nodes if node.name == name)
                bought.append(Bought(name, op, macs, lost))
        reasons = self.reasons(trial.asked)
        for name in trial.asked:
            reasons[name] = "left float to meet the target"
        order = [node.name for node in self._refined.graph.nodes]
        chosen = tuple(name for name in order if name in trial.asked)
        quantized = self.network(trial.floats)
        table = self._refined.table
        total = sum(self._macs.values())
        return Mixed(
            quantized,
            replace(
                table,
                scales={blob: table.scales[blob] for blob in quantized.scales},
                float_nodes={name: reasons[name] for name in order if name in reasons},
                dead={blob: n for blob, n in table.dead.items() if blob in quantized.scales},
            ),
            replace(self._settings, float_nodes=(*self._settings.float_nodes, *chosen)),
            self._target,
            start.score,
            trial.score,
            tuple(sorted(bought, key=lambda each: (-each.macs, -each.lost, each.name))),
            total - trial.float_macs,
            total,
            len(self.taken),
            trial.missed,
        )

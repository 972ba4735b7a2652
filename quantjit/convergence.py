"""How many inputs are enough: how the solved scales moved as inputs came in.

Snapshots are taken when exactly the first 16, 32, 64 ... inputs are in the statistics, in the order
of the files, so that neither threads nor batches show, and once more at the end.  From each the
scales are solved as if the calibration ended there; a blob that hardly moved while the inputs
doubled will hardly move when they double again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

TOLERANCE = 0.01
"""Relative move of a scale that is called none: a hundredth of a step of int8."""

FIRST_SNAPSHOT = 16

LEAST_INPUTS = 2 * FIRST_SNAPSHOT
"""Inputs before which nothing is called stable: a few alike say nothing about the others."""

CHANNELS = 4
"""Channels of a blob that are followed, spread evenly: solving all of them takes too long."""

STABLE_SHARE = 0.95
"""Share of the blobs that must not move: the range of some grows with every outlier."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """The solved scales after each snapshot.

    inputs: number of inputs, rising; the last is all of them.  scales: blob name -> float32
    (snapshots, channels): of the one scale of the blob, or of up to CHANNELS of its channels.
    """

    inputs: tuple[int, ...]
    scales: Mapping[str, NDArray[np.float32]]

    def __repr__(self) -> str:
        return f"Convergence({', '.join(map(str, self.inputs))} inputs: {self.advice()})"

    def moves(self) -> dict[str, NDArray[np.float64]]:
        """Return, by blob, by how much its scale moved to each snapshot from the one before.

        float64 (snapshots - 1,): the mean over its channels of |new - old| / max(new, old), 0 for a
        channel that was and is dead.
        """
        return {blob: _moves(scale) for blob, scale in self.scales.items()}

    def doubling(self) -> tuple[int, int] | None:
        """Return places of the last snapshot and the last before it with at most half its inputs.

        None where there is none: after a single input nothing can be said.
        """
        if not self.inputs:
            return None
        last = len(self.inputs) - 1
        for place in range(last - 1, -1, -1):
            if 2 * self.inputs[place] <= self.inputs[last]:
                return place, last
        return None

    def moving(self, tolerance: float = TOLERANCE) -> dict[str, float]:
        """Return the blobs that moved by `tolerance` or more over `doubling`, the most first."""
        places = self.doubling()
        if places is None:
            return dict.fromkeys(self.scales, 1.0)
        found = {blob: float(_moves(scale[list(places)])[0]) for blob, scale in self.scales.items()}
        ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return {blob: move for blob, move in ranked if move >= tolerance}

    def settled(self, inputs: int, tolerance: float = TOLERANCE) -> int:
        """Return how many blobs had a scale within `tolerance` of the last after `inputs` inputs.

        inputs: one of those of the snapshots.
        """
        place = self.inputs.index(inputs)
        moved = (float(_moves(scale[[place, -1]])[0]) for scale in self.scales.values())
        return sum(move < tolerance for move in moved)

    def is_stable(self, tolerance: float = TOLERANCE) -> bool:
        """Whether enough inputs were seen: hardly a blob moved while they doubled."""
        still = len(self.scales) - len(self.moving(tolerance))
        return (
            bool(self.inputs)
            and self.inputs[-1] >= LEAST_INPUTS
            and still >= STABLE_SHARE * len(self.scales)
        )

    def advice(self, tolerance: float = TOLERANCE) -> str:
        """Return one line: enough inputs, or what is still moving."""
        places = self.doubling()
        if places is None or self.inputs[-1] < LEAST_INPUTS:
            return f"too few inputs to say ({LEAST_INPUTS} at least)"
        first, last = (self.inputs[place] for place in places)
        moving = self.moving(tolerance)
        text = (
            f"scales of {len(self.scales) - len(moving)} of {len(self.scales)} blobs moved less "
            f"than {100 * tolerance:.3g} % from {first} to {last} inputs"
        )
        if not moving:
            return f"{text}: enough"
        worst = ", ".join(f"{blob} {100 * move:.1f} %" for blob, move in list(moving.items())[:3])
        verdict = "enough" if self.is_stable(tolerance) else "more would change them"
        return f"{text}: {verdict}; most: {worst}"


def _moves(scale: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean relative move of each row of (snapshots, channels) from the row before."""
    wide = scale.astype(np.float64)
    larger = np.maximum(wide[1:], wide[:-1])
    change = np.abs(np.diff(wide, axis=0))
    moves = np.divide(change, larger, out=np.zeros_like(change), where=larger > 0)
    means: NDArray[np.float64] = moves.mean(axis=1)
    return means


class Tracker:
    """Takes the snapshots of one calibration.

    Parameters
    ----------
    solver : of the blobs
    until_stable : whether the calibration is to end once its scales are stable
    """

    def __init__(self, solver: BlobSolver, *, until_stable: bool = False) -> None:
        self._solver = solver
        self._until_stable = until_stable
        self._inputs: list[int] = []
        self._scales: list[dict[str, NDArray[np.float32]]] = []

    def take(self, inputs: int, stats: Mapping[str, BlobStats]) -> bool:
        """Look at the first `inputs` inputs; return whether to end the calibration.

        It is decided here only, at 16, 32, 64 ... inputs in their order: neither threads nor
        batches show in what is used.
        """
        if inputs < FIRST_SNAPSHOT:
            return False
        self._scales.append(
            {blob: self._solver.solve(_few_channels(seen)).scale for blob, seen in stats.items()}
        )
        self._inputs.append(inputs)
        return self._until_stable and self.convergence().is_stable()

    def finish(self, inputs: int, stats: Mapping[str, BlobStats]) -> Convergence:
        """Look at all inputs, unless that was done; return how the scales moved."""
        if not self._inputs or inputs > self._inputs[-1]:
            self.take(inputs, stats)
        return self.convergence()

    def convergence(self) -> Convergence:
        """Return the scales of all snapshots."""
        blobs = self._scales[0] if self._scales else {}
        return Convergence(
            tuple(self._inputs),
            {blob: np.stack([scales[blob] for scales in self._scales]) for blob in blobs},
        )


def _few_channels(seen: BlobStats) -> BlobStats:
    """Return the statistics of a few channels only."""
    if seen.channels <= CHANNELS:
        return seen
    rows = np.arange(CHANNELS) * seen.channels // CHANNELS
    state = seen.state()
    return BlobStats.from_state(
        {
            name: array[rows] if array.shape[0] == seen.channels else array
            for name, array in state.items()
        }
    )

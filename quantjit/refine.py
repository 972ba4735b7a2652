"""From statistics to the best int8 network: scales, codes and the passes that were asked for.

Every pass is kept only where the int8 network gets closer to the float one by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quantjit import quantizer
from quantjit.calibration import OnProgress, no_progress
from quantjit.dataset import Samples
from quantjit.graph import Graph
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable


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
    stats: Mapping[str, BlobStats] | Mapping[str, ReferenceStats],
    settings: Settings,
    samples: Samples | None = None,
    *,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Refinement:
    """Return the int8 network of these statistics and settings.

    graph: float, with its activations fused.  stats: of `quantizer.observed_blobs`.  samples: the
    inputs that the passes of the settings measure on.
    """
    table = quantizer.solve(graph, stats, settings)
    return Refinement(graph, quantizer.quantize(graph, table, settings), table)

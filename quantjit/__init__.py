"""quantjit: post-training int8 quantization of convolutional networks.

The steps, in order::

    graph = quantjit.load("net.tnnproto")            # float network, activations fused
    data = quantjit.Dataset.open(Path("images"), quantjit.input_shapes(graph))
    evidence = quantjit.calibrate(graph, data, settings)
    table = quantjit.solve(graph, evidence.stats, settings)
    int8 = quantjit.quantize(graph, table, settings)
    quantjit.save(int8, "net_quantized.tnnproto")
    quantjit.verify(graph, int8, data)

Importing this package compiles nothing and imports neither numba nor polars: each name is loaded
when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from quantjit.calibration import calibrate
    from quantjit.dataset import ArraySamples, Dataset
    from quantjit.errors import QuantJitError
    from quantjit.executor import Executor
    from quantjit.formats import save
    from quantjit.graph import Graph, Node
    from quantjit.images import Preprocess
    from quantjit.pipeline import input_shapes, load, run, verify
    from quantjit.quant import QuantParams
    from quantjit.quantizer import Settings, quantize, solve
    from quantjit.stats import BlobStats
    from quantjit.table import CalibrationTable

_HOMES = {
    "ArraySamples": "dataset",
    "BlobStats": "stats",
    "CalibrationTable": "table",
    "Dataset": "dataset",
    "Executor": "executor",
    "Graph": "graph",
    "Node": "graph",
    "Preprocess": "images",
    "QuantJitError": "errors",
    "QuantParams": "quant",
    "Settings": "quantizer",
    "calibrate": "calibration",
    "input_shapes": "pipeline",
    "load": "pipeline",
    "quantize": "quantizer",
    "run": "pipeline",
    "save": "formats",
    "solve": "quantizer",
    "verify": "pipeline",
}

__all__ = [
    "ArraySamples",
    "BlobStats",
    "CalibrationTable",
    "Dataset",
    "Executor",
    "Graph",
    "Node",
    "Preprocess",
    "QuantJitError",
    "QuantParams",
    "Settings",
    "__version__",
    "calibrate",
    "input_shapes",
    "load",
    "quantize",
    "run",
    "save",
    "solve",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

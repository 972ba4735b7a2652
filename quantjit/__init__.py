"""quantjit: post-training int8 quantization of convolutional networks.

The steps, in order::

    graph = quantjit.load("net.onnx")                     # float network, activations fused
    settings = quantjit.Settings(target="onnx")           # methods, granularity, what stays float
    evidence = quantjit.calibrate(graph, images, settings)
    table = quantjit.solve(graph, evidence, settings)
    int8 = quantjit.quantize(graph, table, settings)
    quantjit.save(int8, "net_int8.onnx")
    quantjit.verify(graph, int8, images)

or all of them: ``quantjit.quantize_model("net.onnx", images, "net_int8.onnx")``.  `images` is a
folder, an array, a data loader, a reader, a generator: see `quantjit.sources`.  `quantjit.explore`
has tables and plots of what came of it.

The names in ``__all__`` with their signatures are the stable surface; everything else may change
between releases.  Importing this package compiles nothing and imports neither numba nor polars:
each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    import quantjit.explore as explore
    from quantjit.api import (
        calibrate,
        load,
        quantize,
        save,
        solve,
        verify,
    )
    from quantjit.calibration import Calibration
    from quantjit.dataset import ArraySamples, Dataset
    from quantjit.errors import QuantJitError
    from quantjit.executor import Executor
    from quantjit.graph import Graph, Node
    from quantjit.images import Preprocess
    from quantjit.metrics import Comparison
    from quantjit.pipeline import Quantization, input_shapes, run
    from quantjit.quant import QuantParams
    from quantjit.quantizer import Settings
    from quantjit.stats import BlobStats
    from quantjit.table import CalibrationTable
    from quantjit.whole import analyze, quantize_model, report, tune

_HOMES = {
    "ArraySamples": "dataset",
    "BlobStats": "stats",
    "Calibration": "calibration",
    "CalibrationTable": "table",
    "Comparison": "metrics",
    "Dataset": "dataset",
    "Executor": "executor",
    "Graph": "graph",
    "Node": "graph",
    "Preprocess": "images",
    "QuantJitError": "errors",
    "QuantParams": "quant",
    "Quantization": "pipeline",
    "Settings": "quantizer",
    "analyze": "whole",
    "calibrate": "api",
    "input_shapes": "pipeline",
    "load": "api",
    "quantize": "api",
    "quantize_model": "whole",
    "report": "whole",
    "run": "pipeline",
    "save": "api",
    "solve": "api",
    "tune": "whole",
    "verify": "api",
}

__all__ = [
    "ArraySamples",
    "BlobStats",
    "Calibration",
    "CalibrationTable",
    "Comparison",
    "Dataset",
    "Executor",
    "Graph",
    "Node",
    "Preprocess",
    "QuantJitError",
    "QuantParams",
    "Quantization",
    "Settings",
    "__version__",
    "analyze",
    "calibrate",
    "explore",
    "input_shapes",
    "load",
    "quantize",
    "quantize_model",
    "report",
    "run",
    "save",
    "solve",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "explore":
        return import_module(f"{__name__}.explore")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

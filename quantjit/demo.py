"""The main job on the network and the images that come with quantjit."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantjit import pipeline
from quantjit.dataset import Preprocess, Sample
from quantjit.errors import DataError
from quantjit.pipeline import Inputs, OnProgress, Quantization
from quantjit.quantizer import Settings

SETTINGS = Settings("mse", "mse", "mix")


def folder() -> Path:
    """Return the folder of the embedded data: in the package, or beside it in a checkout."""
    here = Path(__file__).parent
    for place in (here / "data", here.parent / "data"):
        if (place / "demo.json").is_file():
            return place
    raise DataError(here / "data", "the embedded data are missing; reinstall quantjit")

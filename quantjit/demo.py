"""The main job on the network and the images that come with quantjit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantjit import pipeline
from quantjit.calibration import OnProgress, no_progress
from quantjit.dataset import ArraySamples, load_image
from quantjit.errors import DataError
from quantjit.images import Preprocess
from quantjit.pipeline import Inputs, Quantization
from quantjit.quantizer import Settings

SETTINGS = Settings("mse", "mse", "mix")


def folder() -> Path:
    """Return the folder of the embedded data: in the package, or beside it in a checkout."""
    here = Path(__file__).parent
    for place in (here / "data", here.parent / "data"):
        if (place / "demo.json").is_file():
            return place
    raise DataError(here / "data", "the embedded data are missing; reinstall quantjit")


def preprocess(facts: dict[str, Any]) -> Preprocess:
    """Return the preprocessing that the demo network was trained with."""
    return Preprocess(tuple(facts["bias"]), tuple(facts["scale"]), facts["channel_order"].lower())


def command_line(output: str) -> str:
    """Return the `quantjit quantize` call that `run` stands for."""
    place, here = folder(), Path.cwd()
    facts = json.loads((place / "demo.json").read_text(encoding="utf-8"))
    if place.is_relative_to(here):
        place = place.relative_to(here)
    return (
        f"$ quantjit quantize -p {place / 'demo.tnnproto'} -i {place / 'calib'} "
        f"-n {facts['bias'][0]:g} -s {facts['scale'][0]:.9g} -o {output}"
    )


def evaluation(
    place: Path, shape: tuple[int, ...], how: Preprocess
) -> tuple[ArraySamples, list[int]]:
    """Return the labelled evaluation images, decoded, and their classes."""
    with np.load(place / "eval.npz", allow_pickle=False) as stored:
        data, offsets, labels = stored["jpeg"].tobytes(), stored["offsets"], stored["labels"]
    images = [
        load_image(data[start:stop], shape, how)
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    facts = json.loads((place / "demo.json").read_text(encoding="utf-8"))
    return ArraySamples([{facts["input"]: image} for image in images]), labels.tolist()


def run(
    output: Path, jobs: int | None = None, on_progress: OnProgress = no_progress
) -> Quantization:
    """Quantize the demo network on its calibration images, and verify it on its evaluation images.

    output: the .tnnproto to write.
    """
    place = folder()
    facts = json.loads((place / "demo.json").read_text(encoding="utf-8"))
    how = preprocess(facts)
    result = pipeline.run(
        place / "demo.tnnproto",
        None,
        place / "calib",
        SETTINGS,
        inputs=Inputs(how),
        output=output,
        verify_inputs=0,
        jobs=jobs,
        on_progress=on_progress,
    )
    samples, labels = evaluation(place, tuple(facts["shape"]), how)
    known = {f"input {index}": label for index, label in enumerate(labels)}
    comparison = pipeline.verify(
        result.graph,
        result.quantized,
        samples,
        labels=known,
        why_float=result.table.float_nodes,
        jobs=jobs,
        on_progress=on_progress,
    )
    return replace(result, comparison=comparison)

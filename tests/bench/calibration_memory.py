"""Calibrate on thousands of inputs and print the peak memory after 200 and after all of them.

    python tests/bench/calibration_memory.py [--inputs 10000] [--batch N] [--jobs N]

The inputs are the calibration images, each time shifted, brightened and with noise, made when they
are asked for.  The network is squeezenet_v1.0 of the reference data beside the checkout, or the
demo.  Also prints the memory that was planned before.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from quantjit import calibration, demo, pipeline, quantizer
from quantjit import plan as planning
from quantjit.dataset import Sample
from quantjit.executor import infer_shapes
from quantjit.images import Preprocess
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
EARLY = 200


class Perturbed:
    """As many inputs as are wanted from a few images; each is the same whenever it is loaded."""

    def __init__(self, data, count):
        self._data = data
        self._count = count

    def __len__(self):
        return self._count

    def load(self, index):
        (sample,) = self._data.load(index % len(self._data))
        rng = np.random.default_rng(index)
        arrays = {}
        for name, array in sample.arrays.items():
            moved = np.roll(array, rng.integers(-20, 21, 2), (2, 3))
            noise = rng.normal(0, 0.02 * np.abs(array).max(), array.shape)
            arrays[name] = (moved * rng.uniform(0.7, 1.3) + noise).astype(np.float32)
        return (Sample(f"input {index}", arrays),)

    def skip(self, error):
        raise error

    def check(self):
        pass


def peak():
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def network():
    """Name, graph and images of the largest network that is there."""
    proto = SHARED / "models" / "tnn" / "squeezenet_v1.0.tnnproto"
    if proto.exists():
        graph = pipeline.load(proto)
        inputs = Inputs(Preprocess((104.0, 117.0, 123.0), (1.0,), "bgr"))
        return proto.stem, graph, inputs.open(SHARED / "images" / "calib", graph)
    folder = demo.folder()
    facts = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    graph = pipeline.load(folder / "demo.tnnproto")
    return "demo", graph, Inputs(demo.preprocess(facts)).open(folder / "calib", graph)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--merge", default="channel", choices=("channel", "mix", "tensor"))
    given = parser.parse_args()
    name, graph, data = network()
    settings = Settings("mse", "mse", given.merge)
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    plan = planning.plan(graph, channels, jobs=given.jobs, batch=given.batch)
    peaks = {}

    def on_progress(stage, done, total):
        del stage
        if done in {EARLY, total}:
            peaks[done] = peak()

    start = time.perf_counter()
    found = calibration.calibrate(
        graph,
        Perturbed(data, given.inputs),
        settings,
        jobs=given.jobs,
        batch=given.batch,
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - start
    print(
        f"{name}, {given.merge}: {found.images} inputs in {seconds:.0f} s "
        f"({found.images / seconds:.1f}/s), planned {plan.total_bytes / 2**20:.0f} MB"
    )
    early, late = peaks[min(EARLY, given.inputs)], peaks[given.inputs]
    print(
        f"peak memory after {min(EARLY, given.inputs)} inputs {early:.1f} MB, "
        f"after {given.inputs} {late:.1f} MB: {late / early - 1:+.1%}"
    )


if __name__ == "__main__":
    main()

"""What each solver and each pass buys by itself: a table a network and target.

    python tests/bench/ablation.py [squeezenet_v1.0|mobilenet_v2|rfb320 ...] [--target tnn|onnx]
        [--images N] [--calibration N]

Everything is compared with min-max for blobs and weights, a scale per channel for weights only:
each row changes one thing.  Rows "tensor" have one scale for the weights of a layer.  Measured on
held-out images in the target's arithmetic: SQNR of the outputs, agreement of the top-1 with float.
Needs the reference data beside the checkout.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from quantjit import calibration, pipeline, quantizer
from quantjit.images import Preprocess
from quantjit.passes.equalize import equalize
from quantjit.pipeline import Inputs
from quantjit.quantizer import PASSES, Settings
from quantjit.refine import refine
from quantjit.solvers import blob_solvers, weight_solvers

SHARED = Path(__file__).resolve().parents[3] / "shared"
PREPROCESSING = {
    "squeezenet_v1.0": Preprocess((104.0, 117.0, 123.0), (1.0,), "bgr"),
    "mobilenet_v2": Preprocess((128.0,), (1 / 127,), "rgb", "crop", 227),
    "rfb320": Preprocess((127.0,), (1 / 128,), "rgb"),
}
TARGETS = ("tnn", "onnx")


class Bench:
    """One network for one target, with what is measured on."""

    def __init__(self, name, target, images, calibrated):
        models = SHARED / "models"
        proto = models / "tnn" / f"{name}.tnnproto"
        self.name, self.target = name, target
        self.graph = pipeline.load(proto if target == "tnn" else models / f"{name}.onnx")
        inputs = Inputs(PREPROCESSING[name])
        self.seen = inputs.open(SHARED / "images" / "calib", self.graph).spread(calibrated)
        self.held_out = inputs.open(SHARED / "images" / "dev", self.graph).spread(images)
        self.plain = Settings("minmax", "minmax", target=target)
        self.stats = self.gather(self.graph, self.plain)
        self.base = None

    def gather(self, graph, settings):
        return calibration.calibrate(graph, self.seen, settings).stats

    def row(self, what, settings, graph=None, note=""):
        """Quantize, run both networks on the held-out images and print a line."""
        stats = self.stats if graph is None else self.gather(graph, self.plain)
        graph = graph or self.graph
        if (
            set(quantizer.choose_nodes(graph, settings).items())
            != set(quantizer.choose_nodes(graph, self.plain).items())
            or settings.merge == "channel"
        ):
            stats = self.gather(graph, settings)
        made = refine(graph, stats, settings, self.seen)
        kept = [effect.name for effect in made.effects if effect.is_kept]
        note = f"kept: {', '.join(kept) or 'none'}" if settings.passes else note
        found = pipeline.verify(made.graph, made.quantized, self.held_out)
        self.base = found.sqnr if self.base is None else self.base
        agreement = "-" if found.agreement is None else f"{found.agreement:.1%}"
        print(
            f"| {what} | {found.sqnr:.2f} | {found.sqnr - self.base:+.2f} | {agreement} | {note} |",
            flush=True,
        )


def table(bench):
    print(f"\n| {bench.name}, {bench.target} | SQNR dB | against the first | agreement | |")
    print("|---|---|---|---|---|")
    plain, is_tnn = bench.plain, bench.target == "tnn"
    bench.row("minmax", plain)
    for name, solver in blob_solvers().items():
        if name != "minmax" and (is_tnn or solver.symmetric):
            bench.row(f"blobs {name}", replace(plain, blob_method=name))
    for name, solver in weight_solvers().items():
        if name != "minmax" and (is_tnn or solver.symmetric):
            bench.row(f"weights {name}", replace(plain, weight_method=name))
    if is_tnn:
        bench.row("a scale per channel of blobs", replace(plain, merge="channel"))
    else:
        bench.row("symmetric blobs", replace(plain, symmetric=True))
    rows = bench.gather(bench.graph, Settings(merge="channel"))
    for what in ("activations", "weights", "both"):
        found = equalize(bench.graph, rows, what=what, symmetric=is_tnn)
        note = f"expected {found.expected:+.1f} dB"
        bench.row(f"equalize {what}", plain, found.graph, note)
    bench.row("equalize without data", plain, equalize(bench.graph).graph)
    for name in (*PASSES, "all"):
        passes = PASSES if name == "all" else (name,)
        bench.row(f"passes {name}", replace(plain, passes=passes))
        best = replace(plain, blob_method="mse", weight_method="mse", passes=passes)
        bench.row(f"blobs and weights mse, passes {name}", best)
    bench.row("blobs and weights mse", replace(best, passes=()))
    tensor = replace(plain, merge="tensor")
    bench.row("tensor", tensor)
    found = equalize(bench.graph, rows, weights="tensor", symmetric=is_tnn, strength=0.1)
    bench.row("tensor, equalize both", tensor, found.graph, f"expected {found.expected:+.1f} dB")
    bench.row("tensor, equalize both, mse", replace(tensor, weight_method="mse"), found.graph)
    bench.row("tensor, passes all", replace(tensor, passes=PASSES))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(PREPROCESSING))
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=100)
    asked = parser.parse_args()
    for name in asked.networks:
        for target in asked.target or TARGETS:
            table(Bench(name, target, asked.images, asked.calibration))


if __name__ == "__main__":
    main()

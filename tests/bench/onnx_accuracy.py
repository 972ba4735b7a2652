"""Top-1 of int8 networks in onnxruntime: ours beside those of its own quantizer.

    python tests/bench/onnx_accuracy.py squeezenet_v1.0|mobilenet_v2

Needs the reference data beside the checkout: 100 calibration images, 400 labelled others, and
onnxruntime with its quantizer.  Both sides: QDQ, uint8 blobs, int8 weights with a scale a channel,
the same preprocessed images.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from quantjit import pipeline
from quantjit.dataset import Preprocess
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings

SHARED = Path(__file__).resolve().parents[3] / "shared"
PREPROCESSING = {
    "squeezenet_v1.0": Preprocess((104.0, 117.0, 123.0), (1.0,), "bgr"),
    "mobilenet_v2": Preprocess((128.0,), (1 / 127,), "rgb", "crop", 227),
}
THEIRS = {
    "min-max": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy (KL)": CalibrationMethod.Entropy,
}
OURS = [
    ("min-max", "minmax", "minmax"),
    ("percentile", "percentile", "minmax"),
    ("KL", "kl", "minmax"),
    ("MSE", "mse", "minmax"),
    ("MSE, weights MSE", "mse", "mse"),
]


class Reader(CalibrationDataReader):
    """Hands the calibration images to onnxruntime's quantizer, one at a time."""

    def __init__(self, samples):
        self._samples = iter(samples)

    def get_next(self):
        return next(self._samples, None)


def arrays(dataset):
    return [sample.arrays for index in range(len(dataset)) for sample in dataset.load(index)]


def scores(model, samples):
    """Scores of all images, (images, classes)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, sample)[0].reshape(-1) for sample in samples])


def row(side, name, found, expected, labels):
    top1 = (found.argmax(1) == labels).mean()
    agreement = (found.argmax(1) == expected.argmax(1)).mean()
    noise = ((found - expected).astype(np.float64) ** 2).sum()
    signal = (expected.astype(np.float64) ** 2).sum()
    sqnr = 10 * np.log10(signal / noise) if noise else np.inf
    print(f"| {side} | {name} | {top1:.2%} | {agreement:.1%} | {sqnr:.1f} |", flush=True)


def main():
    name = sys.argv[1]
    model = SHARED / "models" / f"{name}.onnx"
    inputs = Inputs(PREPROCESSING[name])
    graph = pipeline.read(model)
    calibration = inputs.open(SHARED / "images" / "calib", graph)
    held_out = inputs.open(SHARED / "images" / "dev", graph)
    known = pipeline.read_labels(SHARED / "images" / "dev" / "labels.csv")
    samples = [sample for index in range(len(held_out)) for sample in held_out.load(index)]
    labels = np.array([known[Path(sample.file).name] for sample in samples])
    tested = [sample.arrays for sample in samples]
    print(f"| {name} | method | top-1 | agrees with float | SQNR dB |\n|---|---|---|---|---|")
    expected = scores(model, tested)
    row("float", "", expected, expected, labels)
    with tempfile.TemporaryDirectory() as folder:
        for method, blobs, weights in OURS:
            made = Path(folder) / "ours_quantized.onnx"
            settings = Settings(blobs, weights, "mix", target="onnx")
            pipeline.run(
                model,
                None,
                SHARED / "images" / "calib",
                settings,
                inputs=inputs,
                output=made,
                verify_inputs=0,
            )
            row("quantjit", method, scores(made, tested), expected, labels)
        for method, calibrate in THEIRS.items():
            made = Path(folder) / "theirs.onnx"
            with contextlib.redirect_stdout(sys.stderr):
                quantize_static(
                    str(model),
                    str(made),
                    Reader(arrays(calibration)),
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    calibrate_method=calibrate,
                )
            row("onnxruntime", method, scores(made, tested), expected, labels)


if __name__ == "__main__":
    main()

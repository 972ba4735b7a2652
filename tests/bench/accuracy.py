"""Quantize a trained network with several settings and print a table of what each keeps.

    python tests/bench/accuracy.py squeezenet_v1.0|mobilenet_v2 [--compat]

Needs the reference data beside the checkout: 100 calibration images, 400 labelled others.
"""

import sys
import tempfile
from pathlib import Path

from quantjit import pipeline
from quantjit.images import Preprocess
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings

SHARED = Path(__file__).resolve().parents[3] / "shared"
PREPROCESSING = {
    "squeezenet_v1.0": Preprocess((104.0, 117.0, 123.0), (1.0,), "bgr"),
    "mobilenet_v2": Preprocess((128.0,), (1 / 127,), "rgb", "crop", 227),
}
SETTINGS = [
    ("mse", "mse", "mix"),
    ("mse", "mse", "channel"),
    ("asymmetric", "mse", "mix"),
    ("minmax", "minmax", "channel"),
    ("minmax", "minmax", "mix"),
    ("kl", "admm", "channel"),
    ("kl", "admm", "mix"),
    ("kl", "admm", "tensor"),
]
COMPAT = [("minmax", "minmax", "channel"), ("kl", "admm", "channel"), ("kl", "admm", "mix")]


def main():
    model = sys.argv[1]
    compat = "--compat" in sys.argv
    proto = SHARED / "models" / "tnn" / f"{model}.tnnproto"
    inputs = Inputs(PREPROCESSING[model])
    held_out = SHARED / "images" / "dev"
    print(f"| {model} | SQNR dB | agreement | top-1 % |\n|---|---|---|---|")
    for names in COMPAT if compat else SETTINGS:
        settings = Settings(*names, compat=compat)
        with tempfile.TemporaryDirectory() as folder:
            result = pipeline.run(
                proto,
                None,
                SHARED / "images" / "calib",
                settings,
                inputs=inputs,
                output=Path(folder) / "made_quantized.tnnproto",
                verify_inputs=0,
            )
            found = pipeline.verify_files(
                (proto, None),
                (result.paths[0], result.paths[1]),
                held_out,
                inputs=inputs,
                labels=held_out / "labels.csv",
            )
        print(
            f"| {settings} | {found.sqnr:.1f} | {found.agreement:.1%} | "
            f"{found.int8_top1:.2%} (float {found.float_top1:.2%}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()

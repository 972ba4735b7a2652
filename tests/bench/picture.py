"""Make notebooks/report.png, the picture of a report in the README: `screenshot.py` of the demo."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from screenshot import picture

import quantjit

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1200, 1285
COLOURS = 96


def evaluation(data):
    """The labelled evaluation images of the demo: pairs of a picture and its class."""
    with np.load(data / "eval.npz") as stored:
        parts, labels = np.split(stored["jpeg"], stored["offsets"][1:-1]), stored["labels"]
    return [
        (Image.open(io.BytesIO(part)), label) for part, label in zip(parts, labels, strict=True)
    ]


def main():
    data = ROOT / "data"
    settings = quantjit.Settings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = quantjit.quantize_model(
            data / "demo.tnnproto",
            data / "calib",
            folder / "demo_quantized.tnnproto",
            settings,
            preprocess=quantjit.Preprocess((127.5,), (1 / 127.5,)),
            evaluation=evaluation(data),
            labels=True,
        )
        classes = json.loads((data / "demo.json").read_text(encoding="utf-8"))["classes"]
        page = quantjit.report(
            folder / "report", result, settings, title="demo", class_names=classes
        )
        shot = Image.open(io.BytesIO(picture(page, *SIZE, 1.0, "light"))).convert("RGB")
        small = shot.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        target = ROOT / "notebooks" / "report.png"
        small.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

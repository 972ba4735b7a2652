"""Time the whole job against onnxruntime's quantizer: whole processes, in turn, as ratios.

    python tests/bench/main_job.py MODEL.onnx MODEL.tnnproto IMAGES [--order bgr] [--bias N]
                                   [--scale N] [--runs 3]

Both read the same images and write a network with per-channel weights; ours also with the KL and
MSE methods.  Prints seconds and peak memory of the process, the best of runs taken in turn, and
each of ours as a ratio to each of the peer's.  Start-up is included, kernels are cached.  Nothing
is asserted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime.quantization as q
from PIL import Image
model, images, out, order, bias, scale, method = sys.argv[1:]
import onnx
value = onnx.load(model, load_external_data=False).graph.input[0]
name = value.name
height, width = (d.dim_value for d in value.type.tensor_type.shape.dim[2:])
bias, scale = np.float32(bias.split(",")), np.float32(scale)
class Reader(q.CalibrationDataReader):
    def __init__(self):
        self.files = iter(sorted(Path(images).glob("*.jpg")))
    def get_next(self):
        file = next(self.files, None)
        if file is None:
            return None
        pixels = np.asarray(Image.open(file).convert("RGB").resize((width, height)), np.float32)
        pixels = pixels[..., ::-1] if order == "bgr" else pixels
        return {name: np.ascontiguousarray(((pixels - bias) * scale).transpose(2, 0, 1))[None]}
q.quantize_static(model, out, Reader(), per_channel=True,
                  calibrate_method=getattr(q.CalibrationMethod, method))
"""


def measure(command):
    """Wall seconds and peak resident MB of one process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(child.stderr.read().decode())
    return seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("onnx")
    parser.add_argument("proto")
    parser.add_argument("images")
    parser.add_argument("--order", default="rgb")
    parser.add_argument("--bias", default="0")
    parser.add_argument("--scale", default="1")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "peer.onnx")
        peer = [sys.executable, "-c", PEER, given.onnx, given.images, out]
        peer += [given.order, given.bias, given.scale]
        ours = [
            sys.executable, "-m", "quantjit", "quantize", "-p", given.proto, "-i", given.images,
            "-r", given.order, "-n", given.bias, "-s", given.scale, "-q", "--verify", "0",
            "-o", str(Path(folder) / "ours"),
        ]  # fmt: skip
        commands = {
            "onnxruntime MinMax": [*peer, "MinMax"],
            "onnxruntime Entropy": [*peer, "Entropy"],
            "quantjit -b minmax -w minmax -t mix": [*ours, "-b", "0", "-w", "0", "-t", "1"],
            "quantjit -b kl -w admm -t channel": [*ours, "-b", "2", "-w", "1", "-t", "0"],
            "quantjit (defaults: mse, mse, mix)": ours,
        }
        figures = {name: [] for name in commands}
        for name, command in commands.items():
            measure(command)  # compiles kernels, warms the file cache
            figures[name] = []
        for _ in range(given.runs):
            for name, command in commands.items():
                figures[name].append(measure(command))
    best = {name: tuple(map(min, zip(*rows, strict=True))) for name, rows in figures.items()}
    peers = [name for name in best if name.startswith("onnxruntime")]
    head = "".join(f" | time / {name.split()[1]} | MB / {name.split()[1]}" for name in peers)
    print(f"| {'':38} | seconds | MB{head} |\n|---|---|---{'|---|---' * len(peers)}|")
    for name, (seconds, memory) in best.items():
        row = f"| {name:38} | {seconds:.2f} | {memory:.0f}"
        for peer in peers:
            row += f" | {seconds / best[peer][0]:.3f} | {memory / best[peer][1]:.3f}"
        print(row + " |")


if __name__ == "__main__":
    main()

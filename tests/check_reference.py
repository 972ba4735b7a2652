"""Compare with what TNN's own tool and runtime made: every golden file, one table.

    python tests/check_reference.py [MODEL ...] [--quick]

Three comparisons a model: our float executor with TNN's float outputs; our int8 executor, running
the original tool's own files, with every int8 blob and output of TNN's naive device; our
``--compat tnn`` quantization of the same inputs with the files that the original wrote.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from quantjit import formats, pipeline, quantizer
from quantjit.dataset import ArraySamples
from quantjit.executor import Executor
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.quantizer import Settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
PREPROCESSING = {
    "squeezenet_v1.0": ("bgr", (104.0, 117.0, 123.0), (1.0,)),
    "mobilenet_v2": ("rgb", (128.0,), (0.0078125,)),
    "rfb320": ("rgb", (127.0,), (0.0078125,)),
}
BLOB_METHODS = {
    "0": "minmax",
    "2": "kl",
    "3": "asymmetric",
    "4": "aciq-gauss",
    "5": "aciq-laplace",
}
WEIGHT_METHODS = {"0": "minmax", "1": "admm", "3": "asymmetric"}


def golden_inputs(model):
    """float32 (16, 1, C, H, W): exactly what TNN was fed."""
    order, bias, scale = PREPROCESSING[model]
    images = np.load(SHARED / "golden" / model / "inputs.npz")["images"]
    if order == "bgr":
        images = images[..., ::-1]
    real = (images.astype(np.float32) - np.float32(bias)) * np.float32(scale)
    return np.ascontiguousarray(real.transpose(0, 3, 1, 2))[:, None]


def golden_outputs(model, key):
    """Flattened outputs of each of the 16 inputs, float32 (16, n), in the order of the names."""
    meta = json.loads((SHARED / "golden" / model / "outputs_meta.json").read_text())
    return [out["name"] for out in meta["outputs"]], np.load(
        SHARED / "golden" / model / "outputs.npz"
    )[key]


def combinations(model):
    """Method combinations that the original tool made files for, e.g. b2w1t0."""
    return sorted(p.name for p in (SHARED / "golden" / model).iterdir() if p.is_dir())


def load_float(model):
    return pipeline.read(SHARED / "models" / "tnn" / f"{model}.tnnproto")


def load_golden(model, methods):
    return formats.load(SHARED / "golden" / model / methods / f"{model}.quantized.tnnproto")


def run_all(graph, names, inputs):
    """Concatenated flat outputs, one row an input; float sums in the reference's order."""
    executor = Executor(lower(graph), exact_order=True)
    name = graph.inputs[0].name
    rows = []
    for array in inputs:
        found = executor.run({name: array})
        rows.append(np.concatenate([found[out].ravel() for out in names]))
    return np.array(rows)


def float_error(model, count=16):
    """Largest |ours - TNN's| over the largest |TNN's| of the same output."""
    names, expected = golden_outputs(model, "float")
    found = run_all(load_float(model), names, golden_inputs(model)[:count])
    return float(np.abs(found - expected[:count]).max() / np.abs(expected[:count]).max())


def int8_mismatches(model, methods, count=16):
    """(outputs that differ in any bit, largest relative difference, bytes that differ, bytes)."""
    graph = load_golden(model, methods)
    names, expected = golden_outputs(model, methods)
    inputs = golden_inputs(model)[:count]
    found = run_all(graph, names, inputs)
    differing = int((found != expected[:count]).sum())
    scale = np.abs(expected[:count]).max()
    largest = float(np.abs(found - expected[:count]).max() / scale)
    path = SHARED / "golden" / model / f"int8_blobs_{methods}.npz"  # "/" in a name is "_"
    bytes_differing = bytes_total = 0
    if path.exists():
        golden = np.load(path)
        seen = {}

        def keep(blob, array):
            if array.dtype == np.int8:
                seen[blob.replace("/", "_")] = array.ravel().copy()

        Executor(lower(graph)).run({graph.inputs[0].name: inputs[0]}, keep)
        name = graph.inputs[0].name
        seen[f"_{name}"] = seen.get(name)
        for blob in golden.files:
            if blob not in seen or seen[blob] is None:
                raise AssertionError(f"{model} {methods}: our network has no int8 blob {blob}")
            bytes_differing += int((seen[blob] != golden[blob]).sum())
            bytes_total += golden[blob].size
    return differing, largest, bytes_differing, bytes_total


def compat_differences(model, methods):
    """How our --compat tnn file differs from the original's: a dict of figures."""
    settings = Settings(
        BLOB_METHODS[methods[1]],
        WEIGHT_METHODS[methods[3]],
        quantizer.MERGES[int(methods[5])],
        compat=True,
    )
    graph = fuse_activation(load_float(model))
    name = graph.inputs[0].name
    dataset = ArraySamples([{name: array} for array in golden_inputs(model)])
    calibration = pipeline.calibrate(graph, dataset, settings)
    table = quantizer.solve(graph, calibration.stats, settings)
    ours = quantizer.quantize(graph, table, settings)
    theirs = load_golden(model, methods)
    if [(n.name, n.op, n.quant is None) for n in ours.nodes] != [
        (n.name, n.op, n.quant is None) for n in theirs.nodes
    ]:
        raise AssertionError(f"{model} {methods}: other nodes or other int8 choices")
    if set(ours.scales) != set(theirs.scales):
        raise AssertionError(f"{model} {methods}: {set(ours.scales) ^ set(theirs.scales)}")
    mine = np.concatenate([ours.scales[blob].scale for blob in theirs.scales])
    golden = np.concatenate([params.scale for params in theirs.scales.values()])
    relative = np.abs(mine - golden) / np.where(golden == 0, 1, golden)
    pairs = list(zip(ours.nodes, theirs.nodes, strict=True))
    codes = [
        np.abs(a.weights["weight"].astype(int) - b.weights["weight"]).ravel()
        for a, b in pairs
        if b.quant is not None and "weight" in b.weights
    ]
    biases = [
        (a.weights["bias"] != b.weights["bias"])
        for a, b in pairs
        if b.quant is not None and "bias" in b.weights
    ]
    codes, biases = np.concatenate(codes), np.concatenate(biases)
    with tempfile.TemporaryDirectory() as folder:
        name = f"{model}.quantized.tnnmodel"
        _, written = formats.save(ours, Path(folder) / f"{model}.quantized.tnnproto")
        same = written.read_bytes() == (SHARED / "golden" / model / methods / name).read_bytes()
    return {
        "same .tnnmodel": same,
        "scales": len(golden),
        "scales off": int((relative > 1e-5).sum()),
        "scales bit-equal": float((mine == golden).mean()),
        "weights": codes.size,
        "weights equal": float((codes == 0).mean()),
        "weights max off": int(codes.max()),
        "biases differing": int(biases.sum()),
        "biases": biases.size,
    }


def main(arguments):
    quick = "--quick" in arguments
    models = [name for name in arguments if not name.startswith("-")] or list(PREPROCESSING)
    count = 2 if quick else 16
    for model in models:
        print(f"{model}: float, largest relative error {float_error(model, count):.2e}")  # noqa: T201
        for methods in combinations(model):
            differing, largest, wrong, total = int8_mismatches(model, methods, count)
            print(  # noqa: T201
                f"{model} {methods}: int8 outputs differing {differing} (largest {largest:.1e}), "
                f"int8 blob bytes differing {wrong} of {total}",
                flush=True,
            )
            if not quick:
                print(f"    compat: {compat_differences(model, methods)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])

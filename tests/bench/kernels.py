"""Kernels and whole networks beside onnxruntime and the machine's peak, interleaved, best of N.

    python tests/bench/kernels.py [--threads 1 2] [--rounds 8] [--models FOLDER]

Prints three tables: products against what registers alone reach in the same run, convolutions
against a session of one node (which pays its own layout conversions), and networks against
onnxruntime's float and QDQ int8 (uint8 activations, weights a scale a channel, made here).  Ratios
are our time over theirs: below 1 we are faster.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

from quantjit import pipeline, quantizer
from quantjit.dataset import ArraySamples
from quantjit.executor import Executor
from quantjit.kernels import schedule, simd, tiled, tiling
from quantjit.passes.lower import lower
from quantjit.quantizer import Settings

GEMMS = [(3072, 512, 512), (3072, 256, 256), (3000, 64, 256), (12288, 576, 64), (768, 2304, 512)]
CONVOLUTIONS = [  # channels, side, out_channels, kernel, stride, pad, groups
    (64, 55, 64, 3, 1, 1, 1),
    (16, 55, 64, 3, 1, 1, 1),
    (64, 27, 256, 3, 1, 1, 1),
    (512, 13, 1000, 1, 1, 0, 1),
    (3, 227, 96, 7, 2, 0, 1),
    (256, 14, 256, 3, 1, 1, 1),
    (3, 224, 32, 3, 2, 1, 1),
    (96, 14, 576, 1, 1, 0, 1),
    (160, 7, 960, 1, 1, 0, 1),
    (96, 112, 96, 3, 1, 1, 96),
    (144, 56, 144, 3, 1, 1, 144),
    (576, 14, 576, 3, 1, 1, 576),
    (960, 7, 960, 3, 1, 1, 960),
]
NETWORKS = ("squeezenet_v1.0", "mobilenet_v2")
console = Console(width=110)


def best(functions, rounds):
    """Smallest time of each function, run in turn."""
    times = [np.inf] * len(functions)
    for function in functions:
        function()
    for _ in range(rounds):
        for index, function in enumerate(functions):
            for _ in range(5):
                start = time.perf_counter()
                function()
                times[index] = min(times[index], time.perf_counter() - start)
    return times


def _emit_peak(is_float):
    """24 chains of multiply-adds of registers: what one core can do at most."""

    def emit(e, count, out):
        kind = simd.FLOATS if is_float else simd.INTS
        seed = [e.load(e.at(out, i, 64), kind) for i in range(24)]

        def body(index, sums):
            del index
            for _ in range(4):
                for i, value in enumerate(sums):
                    other = seed[1 + i % 2]
                    step = (
                        e.fma(seed[0], other, value) if is_float else e.dot(value, seed[0], other)
                    )
                    sums[i] = step
            return sums

        for i, value in enumerate(e.loop(count, seed, body)):
            e.store(value, e.at(out, i, 64))

    return simd.emitted("ii", emit)


_FLOAT_PEAK, _INT8_PEAK = _emit_peak(True), _emit_peak(False)


@numba.njit(nogil=True)
def _float_peak(count, address):
    _FLOAT_PEAK(count, address)


@numba.njit(nogil=True)
def _int8_peak(count, address):
    _INT8_PEAK(count, address)


def peak(run, rounds):
    """GOPS of one core, of registers alone: multiplies and adds are two."""
    area = np.zeros(64 * 32, np.uint8)
    count = 20000
    (seconds,) = best([lambda: run(count, area.ctypes.data)], rounds)
    products = 1 if run is _float_peak else (4 if simd.DOT else 2)
    return 2 * count * 4 * 24 * simd.LANES * products / seconds / 1e9


def node_runner(node, arrays, out, threads):
    """Run a prepared node on these arrays, by a team where there are threads for one."""
    scratch = schedule.make_scratch(node.scratch_bytes)
    node.bind(arrays, (out,), scratch)
    table = np.array(node.rows, np.int64)
    team = schedule.Team(threads) if threads > 1 else None

    def run(kept=(node, arrays, out, scratch)):  # the table holds addresses only
        del kept
        if team is None:
            schedule.run_alone(table, 0, len(table))
        else:
            team.run(table, 0, len(table))

    return run


def int8_node(window, weight, threads):
    """An int8 convolution with scales that keep codes in range."""
    count, nothing = window.out_channels, np.zeros(window.out_channels, np.float32)
    factor = np.full(count, 1 / np.sqrt(weight[0].size) / 5000, np.float32)
    terms = (factor, nothing, nothing + 127, nothing, nothing, nothing, nothing)
    finish = tiling.Requantization(*terms, -np.inf, simd.AWAY, adds=False)
    zeros, bias = np.zeros(window.channels, np.int8), np.zeros(count, np.int32)
    return tiling.prepare_int8(window, weight, bias, zeros, finish, threads)


def session(model, threads):
    """A session of onnxruntime with that many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not isinstance(model, str):
        model = model.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def conv_model(shape, weight, stride, pad, groups, *, is_int8):
    """One Conv or QLinearConv (uint8 activations)."""
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
    values = {"w": weight}
    names, op, kind = ["x", "w"], "Conv", onnx.TensorProto.FLOAT
    if is_int8:
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        op, kind, count = "QLinearConv", onnx.TensorProto.UINT8, len(weight)
        values |= {"xs": np.float32(0.02), "xz": np.uint8(128), "yz": np.uint8(128)}
        values |= {"ws": np.full(count, 0.01, np.float32), "wz": np.zeros(count, np.int8)}
        values["ys"] = np.float32(np.sqrt(weight[0].size))
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


@numba.njit(nogil=True)
def _multiply(x, depth, pixels, blocks, weights, bias, offsets, laid, band, out):
    """int8 (depth, pixels) by packed weights into int32: interleave a band, then its tiles."""
    units = depth // tiled.UNIT
    plane = band + simd.TILE
    for first in range(0, pixels, band):
        count = min(band, pixels - first)
        for unit in range(units):
            at = x + unit * tiled.UNIT * pixels + first
            tiled.join_into(
                at, at + pixels, at + 2 * pixels, at + 3 * pixels, laid + unit * plane * 4,
                count, count // simd.LANES, 1,
            )  # fmt: skip
        for b in range(len(blocks)):
            rows, channel = blocks[b, 0], blocks[b, 1]
            for start in range(0, count, simd.TILE):
                halves = min(2 * simd.VECTORS, (count - start) // tiled.HALF)
                tiled.int8_tile(
                    rows, halves, weights + channel * units * 4, laid + start * 4, offsets,
                    units, bias, out + (channel * pixels + first + start) * 4, pixels * 4, bias, 1,
                    simd.RAW, np.float32(0),
                )  # fmt: skip


def product_runner(rows, depth, outs, rng):
    """Return what multiplies int8 (depth, rows) by (outs, depth), after a check of its result."""
    band = max(simd.TILE, 320 * 1024 // depth // simd.TILE * simd.TILE)
    blocks = np.array(tiling.blocks(outs), np.int64)
    weight = rng.integers(-127, 128, (outs, depth)).astype(np.int8)
    unit = tiled.UNIT
    kind = np.int8 if simd.DOT else np.int16
    packed = np.concatenate(
        [
            weight[first : first + height].reshape(height, -1, unit).transpose(1, 0, 2).ravel()
            for height, first in blocks
        ]
    ).astype(kind)
    x = rng.integers(-128, 128, (depth, rows)).astype(np.int8)
    plane = band + simd.TILE
    offsets = np.arange(depth // unit, dtype=np.int64) * plane * 4
    laid = np.zeros(depth // unit * plane, np.int32)
    out, bias = np.zeros((outs + 6, rows), np.int32), np.zeros(8, np.int32)
    arrays = (x, packed, bias, offsets, laid, out)
    x_at, weights_at, bias_at, offsets_at, laid_at, out_at = (a.ctypes.data for a in arrays)

    def run(kept=arrays):
        del kept
        _multiply(x_at, depth, rows, blocks, weights_at, bias_at, offsets_at, laid_at, band, out_at)

    run()
    exact = weight.astype(np.int32) @ (x.astype(np.int32) + tiled.OFFSET)
    np.testing.assert_array_equal(out[:outs], exact)
    return run


def bench_products(rounds):
    float_peak, int8_peak = peak(_float_peak, rounds), peak(_int8_peak, rounds)
    title = (
        f"int8 products, one thread, {simd.FORM}; peak {int8_peak:.0f} GOPS, "
        f"float {float_peak:.0f} GFLOPS"
    )
    table = Table(
        "M, K, N", "into int32, GOPS", "of peak", "requantized", "of peak", title=title,
        min_width=80,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for most, depth, outs in GEMMS:
        rows = most - most % tiled.HALF
        window = tiling.Window(1, 1, depth, 1, rows, outs, 1, rows, 1, 1)
        weight = rng.integers(-127, 128, (outs, depth, 1, 1)).astype(np.int32)
        x = rng.integers(-128, 128, (1, depth, 1, rows)).astype(np.int8)
        out = np.zeros((1, outs, 1, rows), np.int8)
        node = node_runner(int8_node(window, weight, 1), (x,), out, 1)
        cells = []
        for seconds in best([product_runner(rows, depth, outs, rng), node], rounds):
            gops = 2 * rows * depth * outs / seconds / 1e9
            cells += [f"{gops:.0f}", f"{gops / int8_peak:.0%}"]
        table.add_row(f"{rows}, {depth}, {outs}", *cells)
    console.print(table)


def bench_convolutions(threads, rounds):
    table = Table(
        "C, H, K, k, stride, groups", "float ms", "onnxruntime", "ratio", "int8 ms",
        "onnxruntime", "ratio", title=f"convolutions, {threads} threads",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for channels, side, outs, kernel, stride, pad, groups in CONVOLUTIONS:
        out_side = (side + 2 * pad - kernel) // stride + 1
        sides = (side, side, outs, out_side, out_side)
        window = tiling.Window(
            1, groups, channels, *sides, kernel, kernel, stride, stride, pad, pad
        )
        shape, weight_shape = (1, channels, side, side), (outs, channels // groups, kernel, kernel)
        x = rng.standard_normal(shape).astype(np.float32)
        weight = rng.standard_normal(weight_shape).astype(np.float32)
        codes = rng.integers(-128, 128, shape).astype(np.int8)
        weights = rng.integers(-127, 128, weight_shape).astype(np.int32)
        node = tiling.prepare_float(
            window, weight, np.zeros(outs, np.float32), -np.inf, np.inf, swish=False,
            threads=threads,
        )  # fmt: skip
        out = np.zeros((1, outs, out_side, out_side), np.float32)
        model = (shape, weight, stride, pad, groups)
        theirs = session(conv_model(*model, is_int8=False), threads)
        model = (shape, weights.astype(np.int8), stride, pad, groups)
        theirs_int8 = session(conv_model(*model, is_int8=True), threads)
        unsigned = (codes.astype(np.int16) + 128).astype(np.uint8)
        times = best(
            [
                node_runner(node, (x,), out, threads),
                lambda run=theirs.run, x=x: run(None, {"x": x}),
                node_runner(
                    int8_node(window, weights, threads), (codes,), out.astype(np.int8), threads
                ),
                lambda run=theirs_int8.run, x=unsigned: run(None, {"x": x}),
            ],
            rounds,
        )
        ours, other, ours_int8, other_int8 = (1e3 * seconds for seconds in times)
        table.add_row(
            f"{channels}, {side}, {outs}, {kernel}, {stride}, {groups}", f"{ours:.3f}",
            f"{other:.3f}", f"{ours / other:.2f}", f"{ours_int8:.3f}", f"{other_int8:.3f}",
            f"{ours_int8 / other_int8:.2f}",
        )  # fmt: skip
    console.print(table)


class _Reader:
    def __init__(self, name, arrays):
        self._feeds = iter([{name: array} for array in arrays])

    def get_next(self):
        return next(self._feeds, None)


def their_int8(path, name, arrays, folder):
    """Quantize with onnxruntime; returns the path of its QDQ file."""
    from onnxruntime import quantization

    prepared, out = folder / f"{path.stem}_prepared.onnx", folder / f"{path.stem}_qdq.onnx"
    quantization.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(out),
        _Reader(name, arrays),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    return out


def our_int8(graph, arrays):
    """Quantize with the defaults, for TNN's arithmetic."""
    settings = Settings("mse", "mse", "mix")
    samples = ArraySamples([{graph.inputs[0].name: array} for array in arrays])
    calibration = pipeline.calibrate(graph, samples, settings)
    table = quantizer.solve(graph, calibration.stats, settings)
    return quantizer.quantize(graph, table, settings)


def bench_networks(models, threads, rounds, batches):
    table = Table(
        "network", "batch", "float ms", "onnxruntime", "ratio", "int8 ms", "onnxruntime", "ratio",
        title=f"networks, {threads} threads",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for name in NETWORKS:
        path = models / f"{name}.onnx"
        graph = pipeline.load(path)
        source = graph.inputs[0]
        calibration = [rng.standard_normal(source.shape).astype(np.float32) for _ in range(4)]
        quantized = lower(our_int8(graph, calibration))
        with tempfile.TemporaryDirectory() as folder:
            their_path = their_int8(path, source.name, calibration, Path(folder))
            for batch in batches:
                x = rng.standard_normal((batch, *source.shape[1:])).astype(np.float32)
                functions = []
                for network, theirs in ((graph, path), (quantized, their_path)):
                    shaped = network.with_input_shapes({source.name: x.shape})
                    executor = Executor(shaped, threads)
                    other = session(_with_batch(theirs, batch), threads)
                    functions += [
                        lambda run=executor.run, feed={source.name: x}: run(feed),
                        lambda run=other.run, feed={source.name: x}: run(None, feed),
                    ]
                times = best(functions, rounds)
                ours, other, ours_int8, other_int8 = (1e3 * seconds for seconds in times)
                table.add_row(
                    name, str(batch), f"{ours:.2f}", f"{other:.2f}", f"{ours / other:.2f}",
                    f"{ours_int8:.2f}", f"{other_int8:.2f}", f"{ours_int8 / other_int8:.2f}",
                )  # fmt: skip
    console.print(table)


def _with_batch(path, batch):
    model = onnx.load(str(path))
    del model.graph.value_info[:]
    weights = {initializer.name for initializer in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in weights:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def main():
    """Print the tables."""
    onnxruntime.set_default_logger_severity(3)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=8)
    shared = Path(__file__).resolve().parents[3] / "shared" / "models"
    parser.add_argument("--models", type=Path, default=shared, help="folder of NAME.onnx")
    given = parser.parse_args()
    bench_products(given.rounds)
    for threads in given.threads:
        bench_convolutions(threads, given.rounds)
        if given.models.is_dir():
            bench_networks(given.models, threads, given.rounds, given.batches)


if __name__ == "__main__":
    main()

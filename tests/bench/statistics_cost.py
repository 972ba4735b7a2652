"""What the statistics and the solvers cost, against what the machine can do and the direct way.

    python tests/bench/statistics_cost.py [--runs 5] [--channels 1000]

Prints three tables: the histogram kernel in GB/s beside the memory bandwidth of the same run, KL
and ADMM as ratios to direct implementations (also in Numba, here), and the statistics of whole
networks on top of their bare forward pass.  The networks are those of the reference data beside
the checkout, or the demo.  All times are the best of the runs; nothing is asserted but that the
direct ways give the same answers.
"""

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np

from quantjit import demo, pipeline, quantizer
from quantjit.executor import Executor, infer_shapes
from quantjit.images import Preprocess
from quantjit.kernels.divergence import search_divergence_into
from quantjit.kernels.weights import admm_weights_into
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
CODES = 127  # that KL is searched with
PREPROCESSING = {
    "squeezenet_v1.0": Preprocess((104.0, 117.0, 123.0), (1.0,), "bgr"),
    "mobilenet_v2": Preprocess((128.0,), (1 / 127,), "rgb", "crop", 227),
}


@numba.njit(nogil=True, fastmath=True)
def total(x):
    """Read an array at the speed of memory."""
    found = np.float32(0)
    for i in range(x.size):
        found += x[i]
    return found


@numba.njit(nogil=True)
def direct_divergence_search(counts):  # noqa: C901 - one flat loop nest
    """KL search that adds up the bins of each half of a code at each threshold; same ties."""
    used = 0
    filled_bins = 0
    whole = 0.0
    for i in range(counts.size):
        whole += counts[i]
        if counts[i] > 0:
            used = i + 1
            filled_bins += 1
    if filled_bins <= CODES:
        return used
    cells = 2 * CODES
    mass, filled = np.zeros(cells), np.zeros(cells)
    best, least = used, np.inf
    clipped = 0.0
    for kept in range(used, CODES - 1, -1):
        if kept < used:
            clipped += counts[kept]
        if counts[kept - 1] == 0:
            continue
        for cell in range(cells):
            start, stop = cell * kept / cells, (cell + 1) * kept / cells
            mass[cell] = filled[cell] = 0.0
            for i in range(cell * kept // cells, ((cell + 1) * kept - 1) // cells + 1):
                if counts[i] > 0:
                    share = min(stop, i + 1.0) - max(start, float(i))
                    mass[cell] += share * counts[i]
                    filled[cell] += share
        last = mass[cells - 1]
        found = (last + clipped) * math.log((last + clipped) / last)
        for code in range(1, CODES):
            level = mass[2 * code - 1] + mass[2 * code]
            level /= max(filled[2 * code - 1] + filled[2 * code], 1e-9)
            for cell in range(2 * code - 1, 2 * code + 1):
                if mass[cell] > 0:
                    found += mass[cell] * math.log(mass[cell] / (level * filled[cell]))
        if found < least - 1e-12 * whole:  # sums in another order: equals differ by rounding
            best, least = kept, found
    return best


@numba.njit(parallel=True)
def direct_divergence_search_into(counts, out):
    for c in numba.prange(out.size):
        out[c] = direct_divergence_search(counts[c])


@numba.njit(parallel=True, error_model="numpy")
def plain_admm_into(weights, rounds, out):
    """Each round over all weights, in order."""
    half, top = np.float32(0.5), np.float32(127)
    for r in numba.prange(out.size):
        largest = np.float32(0)
        for i in range(weights.shape[1]):
            largest = max(largest, abs(weights[r, i]))
        step = largest / top / np.float32(1.25)
        for _ in range(rounds):
            above, below = 0.0, 0.0
            for i in range(weights.shape[1]):
                value = weights[r, i] / step
                code = np.floor(value + half) if value >= 0 else np.ceil(value - half)
                code = np.float64(min(max(code, -top), top))
                above += np.float64(weights[r, i]) * code
                below += code * code
            step = np.float32(above / below)
        fitted, error = step, np.inf
        for candidate in (largest / top, fitted):  # the whole range where that errs less
            found = 0.0
            for i in range(weights.shape[1]):
                value = weights[r, i] / candidate
                code = np.floor(value + half) if value >= 0 else np.ceil(value - half)
                code = min(max(code, -top), top)
                found += (np.float64(weights[r, i]) - np.float64(code) * candidate) ** 2
            if found < error:
                out[r], error = candidate, found


def best(run, runs):
    """Least seconds of some runs, after one to compile and to warm up."""
    run()
    least = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least


def histogram_table(runs):
    """Speed of the histogram kernel; each thread has statistics of its own, as in a calibration."""
    threads = numba.config.NUMBA_NUM_THREADS
    rng = np.random.default_rng(0)
    print("| blob | bandwidth GB/s | statistics GB/s | share of bandwidth |\n|---|---|---|---|")
    for kind in ("normal", "after a ReLU"):
        x = rng.standard_normal((threads, 1, 64, 512 * 256), dtype=np.float32)
        if kind != "normal":
            x = np.maximum(x, 0)
        for rows in (64, 1):
            with ThreadPoolExecutor(threads) as pool:
                states = [BlobStats(rows) for _ in range(threads)]
                read = best(lambda x=x: list(pool.map(total, x.reshape(threads, -1))), 3 * runs)
                spent = best(
                    lambda x=x, states=states: list(pool.map(BlobStats.update, states, x)),
                    runs,
                )
            what = "per channel" if rows > 1 else "per tensor"
            print(
                f"| {kind}, {what}, {x.nbytes / 1e6:.0f} MB, {threads} threads"
                f" | {x.nbytes / read / 1e9:.1f} | {x.nbytes / spent / 1e9:.1f}"
                f" | {read / spent:.0%} |",
                flush=True,
            )


def solver_table(runs, channels):
    """KL and ADMM beside the direct ways."""
    rng = np.random.default_rng(0)
    print("\n| solver | ms | direct ms | ratio | same |\n|---|---|---|---|---|")
    for kind, draw in (("Gaussian", rng.standard_normal), ("Laplacian", rng.laplace)):
        stats = BlobStats(channels, 2048)
        for _ in range(4):
            stats.update(np.asarray(draw(size=(1, channels, 10_000)), np.float32))
        counts = stats.counts
        found, direct = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
        spent = best(lambda c=counts, f=found: search_divergence_into(c, CODES, f), runs)
        direct_divergence_search_into(counts[:2], direct[:2])
        start = time.perf_counter()
        direct_divergence_search_into(counts, direct)
        slow = time.perf_counter() - start
        print(
            f"| KL, {channels} {kind} channels x 2048 bins | {spent * 1e3:.0f} | "
            f"{slow * 1e3:.0f} | {spent / slow:.4f} | {(found == direct).mean():.1%} |",
            flush=True,
        )
    weights = (0.02 * rng.standard_normal((512, 512 * 9))).astype(np.float32)
    scale, plain = np.zeros(512, np.float32), np.zeros(512, np.float32)
    codes = np.zeros(weights.shape, np.int8)
    spent = best(lambda: admm_weights_into(weights, codes, scale), runs)
    plain_admm_into(weights[:2], 1, plain[:2])
    start = time.perf_counter()
    plain_admm_into(weights, 1000, plain)
    slow = time.perf_counter() - start
    print(
        f"| ADMM, 512 x 512 x 3 x 3 per channel, 1000 rounds | {spent * 1e3:.0f} | "
        f"{slow * 1e3:.0f} | {spent / slow:.4f} | {(scale == plain).mean():.1%} |",
        flush=True,
    )


def overhead_table(runs):
    """Statistics of all blobs on top of the float network, one thread, one input at a time."""
    print("\n| network, scales | forward ms | with statistics ms | more |\n|---|---|---|---|")
    for name, graph, samples in networks():
        for merge in ("channel", "mix"):
            channels = quantizer.observed_blobs(graph, infer_shapes(graph), Settings(merge=merge))
            stats = {blob: BlobStats(count) for blob, count in channels.items()}

            def observe(blob, array, stats=stats):
                if blob in stats:
                    stats[blob].update(array)

            executor = Executor(graph)
            bare = seen = math.inf
            for _ in range(runs + 1):
                bare = min(bare, forward(executor, samples, None))
                seen = min(seen, forward(executor, samples, observe))
            print(
                f"| {name}, {merge} | {bare * 1e3:.1f} | {seen * 1e3:.1f}"
                f" | {seen / bare - 1:.1%} |",
                flush=True,
            )


def forward(executor, samples, on_blob):
    """Seconds an input, the best of all."""
    least = math.inf
    for sample in samples:
        start = time.perf_counter()
        executor.run(sample.arrays, on_blob)
        least = min(least, time.perf_counter() - start)
    return least


def networks():
    """Name, graph and a few inputs of each network."""
    found = False
    for name, preprocess in PREPROCESSING.items():
        proto = SHARED / "models" / "tnn" / f"{name}.tnnproto"
        if proto.exists():
            found = True
            graph = pipeline.load(proto)
            data = Inputs(preprocess, 4).open(SHARED / "images" / "calib", graph)
            yield name, graph, list(data)
    if not found:
        folder = demo.folder()
        facts = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        graph = pipeline.load(folder / "demo.tnnproto")
        data = Inputs(demo.preprocess(facts), 16).open(folder / "calib", graph)
        yield "demo", graph, list(data)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=1000, help="of the KL search")
    given = parser.parse_args()
    histogram_table(given.runs)
    solver_table(given.runs, given.channels)
    overhead_table(given.runs)


if __name__ == "__main__":
    main()

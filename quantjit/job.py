"""One step of a zoo in a process of its own: look at models, decode their images, quantize one.

The process is started by `quantjit.zoo` and ends with it: its standard input is a pickled task and
then nothing, until the other side closes it or is gone.  Events go to standard output, a JSON
object a line; everything else that is printed goes to standard error.  What it writes lies in a
folder that only it uses.
"""

import json
import math
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from quantjit import page, pipeline, quantizer, tuning, verdict
from quantjit import plan as planning
from quantjit.calibration import OnProgress, blobs_to_gather
from quantjit.dataset import Dataset
from quantjit.decoded import Pixels, Reusing, write
from quantjit.errors import QuantJitError
from quantjit.executor import count_macs, infer_shapes
from quantjit.images import Preprocess, Shape
from quantjit.manifest import Entry
from quantjit.pipeline import Quantization
from quantjit.tables import leaderboard_frame
from quantjit.tuning import Tuned

Send = Callable[[Mapping[str, Any]], None]

STATISTICS, REPORT = "statistics.qjs", "report"
"""Names in a model's folder."""

REPORT_BYTES = 160 * 2**20
"""That comparing channel by channel and writing the report take beyond `quantjit.plan`, measured.

Results depend on the memory that is planned with, so it is the same for all models.
"""

_WEIGHTS_OF_CANDIDATES = 8  # copies of the weights while methods are tried
_SECONDS_AN_EVENT = 0.1
_ORPHANED = 3  # exit code: whoever started this process is gone


@dataclass(frozen=True, slots=True)
class Look:
    """What would each of these models take?  threads: for how many, at most.

    Sends ``{"model": name, "macs": ..., "shapes": ..., "bytes": {threads: ...}}`` or
    ``{"model": name, "error": ...}`` for each.
    """

    entries: tuple[Entry, ...]
    memory: int | None
    threads: int

    def run(self, send: Send) -> None:
        """Look at the models one after the other."""
        for entry in self.entries:
            send({"looking": entry.name})
            try:
                send({"model": entry.name, **self._facts(entry)})
            except QuantJitError as error:
                send({"model": entry.name, "error": str(error)})

    def _facts(self, entry: Entry) -> dict[str, Any]:
        graph = pipeline.load(entry.path, entry.weights, entry.shapes)
        rows = blobs_to_gather(graph, entry.settings.merge)
        beyond = REPORT_BYTES
        if entry.is_auto:
            weights = sum(array.nbytes for node in graph.nodes for array in node.weights.values())
            inputs = sum(4 * math.prod(blob.shape) for blob in graph.inputs)
            beyond += _WEIGHTS_OF_CANDIDATES * weights + tuning.MOST_HELD_OUT * inputs
        taken = {}
        for threads in range(1, self.threads + 1):
            plan = planning.plan(graph, rows, memory=self.memory, jobs=threads)
            verifying = planning.bytes_to_verify(graph, rows, self.memory, threads)
            taken[threads] = max(plan.total_bytes, verifying) + beyond
        return {
            "macs": sum(count_macs(graph, infer_shapes(graph)).values()),
            "shapes": {name: list(shape) for name, shape in pipeline.input_shapes(graph).items()},
            "bytes": taken,
        }


@dataclass(frozen=True, slots=True)
class Decode:
    """Write the images of one folder of inputs into a file of pixels; see `quantjit.decoded`."""

    folder: Path
    input_path: Path
    limit: int | None
    shape: Shape
    how: Preprocess
    most_bytes: int
    threads: int

    def run(self, send: Send) -> None:
        """Decode them."""
        data = Dataset.open(self.input_path, {"": self.shape}, limit=self.limit)
        progress = _Throttled(send)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            progress("decode", done, len(data))

        write(
            self.folder,
            data.files,
            self.shape,
            self.how,
            most_bytes=self.most_bytes,
            jobs=self.threads,
            on_progress=count,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Quantize a model into a folder; decoded: a folder of `Decode`, if there is one.

    Sends progress, and in the end the outcome of `outcome_of`.
    """

    entry: Entry
    folder: Path
    decoded: Path | None
    memory: int | None
    threads: int

    def run(self, send: Send) -> None:
        """Gather, quantize, verify, report."""
        start = time.monotonic()
        entry, on_progress = self.entry, _Throttled(send)
        inputs = entry.inputs
        if self.decoded is not None:
            how = Reusing(inputs.preprocess, Pixels.load(self.decoded))
            inputs = replace(inputs, preprocess=how)
        candidates = None
        if self.entry.is_auto:
            tuned = self._tuned(inputs, on_progress)
            result, settings = tuned.quantization, tuned.settings
            candidates = leaderboard_frame(tuned.candidates).drop("seconds")
        else:
            result, settings = self._quantized(inputs, on_progress), entry.settings
        if entry.verify_path is not None and entry.verify != 0:
            result = self._verified(result, on_progress)
        result.table.save(self.folder / "scales.parquet")
        source = page.Source(entry.name, entry.model_files, entry.input_path, entry.inputs)
        written, *_ = page.write(
            self.folder / REPORT, result, settings, source=source, candidates=candidates
        )
        outcome = outcome_of(result, settings)
        outcome["report"] = written.relative_to(self.folder).as_posix()
        seconds = time.monotonic() - start
        send({"outcome": outcome, "seconds": seconds, "peak_bytes": peak_bytes()})

    @property
    def _output(self) -> Path:
        """Return the file that the network is written to."""
        suffix = "onnx" if self.entry.settings.target == "onnx" else "tnnproto"
        return self.folder / f"{self.entry.path.stem}_quantized.{suffix}"

    def _tuned(self, inputs: pipeline.Inputs, on_progress: OnProgress) -> Tuned:
        """Find the methods; layers stay float where that is what the gates take."""
        entry = self.entry
        is_apart = entry.verify_path is not None
        return tuning.run(
            entry.path,
            entry.weights,
            entry.input_path,
            entry.settings,
            inputs=inputs,
            output=self._output,
            labels=None if is_apart else entry.labels,
            verify_inputs=0 if is_apart else _count(entry.verify),
            jobs=self.threads,
            memory=self.memory,
            nonfinite=entry.nonfinite,
            on_progress=on_progress,
            shapes=entry.shapes,
            form=entry.form,
            float_fallback=entry.float_fallback,
            min_sqnr=entry.gates.min_sqnr,
            max_drop=None if is_apart else entry.gates.max_drop,
        )

    def _quantized(self, inputs: pipeline.Inputs, on_progress: OnProgress) -> Quantization:
        entry = self.entry
        target = entry.settings.target
        statistics = self.folder / STATISTICS
        gathered = pipeline.calibrate_files(
            entry.path,
            entry.weights,
            entry.input_path,
            statistics,
            inputs=inputs,
            merge=entry.settings.merge,
            resume=True,
            nonfinite=entry.nonfinite,
            jobs=self.threads,
            memory=self.memory,
            on_progress=on_progress,
            shapes=entry.shapes,
            target=target,
        )
        result = pipeline.run(
            entry.path,
            entry.weights,
            entry.input_path,
            entry.settings,
            inputs=inputs,
            output=self._output,
            labels=entry.labels if entry.verify_path is None else None,
            verify_inputs=_count(entry.verify) if entry.verify_path is None else 0,
            jobs=self.threads,
            memory=self.memory,
            statistics=statistics,
            on_progress=on_progress,
            shapes=entry.shapes,
            form=entry.form,
            float_fallback=entry.float_fallback,
            detail=True,
        )
        skipped = tuple(sorted({*gathered.skipped, *result.skipped}))
        return replace(result, convergence=gathered.convergence, skipped=skipped)

    def _verified(self, result: Quantization, on_progress: OnProgress) -> Quantization:
        """Return the result, compared on inputs of their own."""
        entry = self.entry
        if entry.verify_path is None:
            return result
        dataset = entry.inputs.open(entry.verify_path, result.graph)
        comparison = pipeline.verify(
            result.graph,
            result.quantized,
            dataset if entry.verify is None else dataset.spread(entry.verify),
            labels=None if entry.labels is None else pipeline.read_labels(entry.labels),
            why_float=result.table.float_nodes,
            jobs=self.threads,
            on_progress=on_progress,
            detail=True,
        )
        return replace(result, comparison=comparison)


Task = Look | Decode | Work


def _count(verify: int | None) -> int:
    return sys.maxsize if verify is None else verify


def outcome_of(result: Quantization, settings: quantizer.Settings) -> dict[str, Any]:
    """Return what the leaderboard says of a model that was quantized; nothing of it is a time."""
    found = result.comparison
    macs = count_macs(result.graph, infer_shapes(result.graph))
    total = sum(macs.values())
    in_int8 = sum(n for name, n in macs.items() if name not in result.table.float_nodes)
    return {
        "settings": str(settings),
        "float_bytes": result.source_bytes,
        "int8_bytes": result.target_bytes,
        "int8_macs": in_int8 / total if total else 0.0,
        "inputs": result.calibration.images,
        "skipped": len(result.skipped),
        "compared": 0 if found is None else found.images,
        "sqnr_db": None if found is None else found.sqnr,
        "agreement": None if found is None else found.agreement,
        "float_top1": None if found is None else found.float_top1,
        "int8_top1": None if found is None else found.int8_top1,
        "grade": "" if found is None else verdict.GRADES[verdict.grade(found)],
        "files": [path.name for path in result.paths],
    }


def peak_bytes() -> int | None:
    """Return the peak of this process's resident memory, None where the system does not say.

    Not that of `resource`: on Linux it may be the parent's, from before the program was started.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in lines.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class _Throttled:
    """Sends progress, a few times a second."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._stage, self._sent = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage or done == total or now - self._sent > _SECONDS_AN_EVENT:
            self._stage, self._sent = stage, now
            self._send({"stage": stage, "done": done, "total": total})


# ------------------------------------------------------------------ the process


def main() -> None:
    """Run the task on standard input."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with os.fdopen(os.dup(0), "rb") as source:
        task: Task = pickle.load(source)  # of the process that started this one
    threading.Thread(target=_end_with_the_other_side, daemon=True).start()
    sys.exit(perform(task, events))


def perform(task: Task, events: TextIO) -> int:
    """Run a task, tell how it went, and return the exit code."""
    lock = threading.Lock()

    def send(event: Mapping[str, Any]) -> None:
        with lock:
            try:
                print(json.dumps(event), file=events, flush=True)
            except BrokenPipeError:
                os._exit(_ORPHANED)

    try:
        task.run(send)
    except QuantJitError as error:
        send({"error": str(error), "kind": "refused"})
        return error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        send({"error": f"{place}{error.strerror or error}", "kind": "system"})
        return 1
    except MemoryError:
        send({"error": "out of memory: give a smaller --memory", "kind": "system"})
        return 1
    except Exception as error:  # noqa: BLE001 - one model's bug does not stop the zoo
        traceback.print_exc()
        text = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        send({"error": f"unexpected {what}", "kind": "bug"})
        return 1
    return 0


def _end_with_the_other_side() -> None:
    while os.read(0, 1):  # no stream: its lock would be held while the interpreter ends
        pass
    os._exit(_ORPHANED)

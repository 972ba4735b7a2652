"""A process that does one task of `quantjit.job`: started, listened to, measured, ended.

It is not in this process's group, so that Ctrl-C reaches only this one; it ends by itself as soon
as this one is gone, however that happened.
"""

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantjit.job import Task

_PROGRAM = "import sys; sys.path[:] = {path!r}; from quantjit.job import main; main()"
_THREADS = (
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: code is negative for a signal; peak_bytes: of its memory, if known."""

    code: int
    peak_bytes: int | None

    @property
    def reason(self) -> str:
        """What happened to a process that did not say so itself."""
        if self.code >= 0:
            return f"its process ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"


Inbox = queue.SimpleQueue[tuple["Child", Mapping[str, Any] | Ended]]


class Child:
    """A task under way.

    Its events, and in the end `Ended`, go to the inbox.  log: what it prints.  threads: it may use.
    kept: file descriptors that stay open in it.
    """

    def __init__(
        self, task: Task, inbox: Inbox, log: Path, threads: int, kept: tuple[int, ...] = ()
    ) -> None:
        self._task, self._inbox = task, inbox
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **dict.fromkeys(_THREADS, str(threads))},
                pass_fds=kept,
                start_new_session=True,
            )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        if self._process.returncode is None:  # Popen.kill would take the exit status for itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._thread.join()

    def _listen(self) -> None:
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        with contextlib.suppress(OSError):  # it is gone already
            process.stdin.write(pickle.dumps(self._task))
            process.stdin.flush()
        with process.stdout as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:  # half a line of a process that was killed
                    continue
                self._inbox.put((self, event))
        code, peak = _wait(process)
        with contextlib.suppress(OSError):
            process.stdin.close()
        self._inbox.put((self, Ended(code, peak)))


def _wait(process: "subprocess.Popen[bytes]") -> tuple[int, int | None]:
    """Return exit code and peak memory in bytes."""
    if not hasattr(os, "wait4"):
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, usage.ru_maxrss * unit

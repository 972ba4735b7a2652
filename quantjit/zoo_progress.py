"""How a zoo goes, on stderr: a line a model at work; plain lines where it is no terminal."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from quantjit.leaderboard import Row


class ZooProgress:
    """A watcher of `quantjit.zoo.run`."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._is_quiet = quiet
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._total = self._done = 0

    def __enter__(self) -> "ZooProgress":
        if not self._is_quiet and self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                TextColumn("{task.fields[stage]}"),
                BarColumn(),
                MofNCompleteColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def planned(self, total: int, to_do: int) -> None:
        """Say how many models are up to date."""
        self._total, self._done = total, total - to_do
        if self._done:
            self._say(f"{self._done} of {total} models are up to date")
        if self._bars is not None and to_do:
            self._tasks[""] = self._bars.add_task(
                "all models", total=total, completed=self._done, stage=""
            )

    def started(self, name: str, threads: int) -> None:
        """Show a model at work."""
        self._begun[name] = time.monotonic()
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(escape(name), total=None, stage="")
        else:
            self._say(f"{name}: started, {threads} thread{'s' * (threads > 1)}")

    def progress(self, name: str, stage: str, done: int, total: int) -> None:
        """Move its bar."""
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=done, total=total, stage=stage)

    def finished(self, name: str, row: Row | None) -> None:
        """Say what became of it."""
        seconds = time.monotonic() - self._begun.pop(name)
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(name))
        if row is None:
            self._say(f"{name}: decoded once for all that need them, {seconds:.1f} s")
            return
        self._done += 1
        if self._bars is not None:
            self._bars.update(self._tasks[""], completed=self._done)
        sqnr: Any = (row.outcome or {}).get("sqnr_db")
        found = "" if sqnr is None else f", {sqnr:.1f} dB"
        reason = row.reason or "; ".join(row.missed)
        self._say(
            f"[{self._done}/{self._total}] {name}: {row.verdict}{found}, {seconds:.1f} s"
            f"{': ' * bool(reason)}{reason}"
        )

    def _say(self, text: str) -> None:
        if not self._is_quiet:
            self._console.print(escape(text), highlight=False)

"""Every error that quantjit raises on purpose.

::

    QuantJitError
    ├─ UsageError(ValueError)           options that contradict each other or the network
    ├─ FormatError(ValueError)          a model file: path, offset or record, expected, found
    ├─ GraphError(ValueError)           a network: node, blob, broken invariant
    ├─ UnsupportedError(LookupError)    something we do not know: kind, name, the known names
    ├─ DataError(ValueError)            an input file: file, reason
    ├─ CalibrationError(ValueError)     the statistics of a blob: blob, reason
    └─ Interrupted                      the user's wish, after what was done had been saved

They are raised at the border, where the file, layer or blob is known, and the command line turns
them into one line on stderr and the class's ``exit_code``.  Anything else is a bug and keeps its
traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class QuantJitError(Exception):
    """Base class of all deliberate errors.

    They may be raised in one process and reported in another: pickled, they keep their text.
    """

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


class UsageError(QuantJitError, ValueError):
    """Options that contradict each other or the network."""

    exit_code = 2


class FormatError(QuantJitError, ValueError):
    """A model file that cannot be read.

    Parameters
    ----------
    path : the file
    where : offset, record or layer inside the file, "" when it is the whole file
    expected, found : what should be there and what is
    remedy : what the user can do, "" when the fault says it all
    """

    exit_code = 3

    def __init__(
        self, path: str | Path, where: str, expected: str, found: str, remedy: str = ""
    ) -> None:
        self.path, self.where, self.expected, self.found = str(path), where, expected, found
        place = f"{path}: {where}" if where else str(path)
        tail = f"; {remedy}" if remedy else ""
        super().__init__(f"{place}: expected {expected}, found {found}{tail}")


class GraphError(QuantJitError, ValueError):
    """A network that breaks an invariant, at the named node or blob."""

    exit_code = 3

    def __init__(self, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(f"{place}: {reason}")


class UnsupportedError(QuantJitError, LookupError):
    """A name that is in no registry; the message lists what is there."""

    exit_code = 3

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        close = get_close_matches(name, self.known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}; {hint}known: {', '.join(self.known)}")

    def __str__(self) -> str:
        return str(self.args[0])


class DataError(QuantJitError, ValueError):
    """An input file or folder that cannot be used."""

    exit_code = 4

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")


class CalibrationError(QuantJitError, ValueError):
    """Statistics from which no scale can be decided."""

    exit_code = 4

    def __init__(self, blob: str, reason: str) -> None:
        self.blob, self.reason = blob, reason
        super().__init__(f"blob {blob!r}: {reason}")


class Interrupted(QuantJitError):  # noqa: N818 - nothing is wrong
    """The user's wish to stop, raised when what was done so far is on the disk."""

    exit_code = 130


def _restored(
    kind: type[QuantJitError], args: tuple[Any, ...], facts: dict[str, Any]
) -> QuantJitError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error

"""The words of one record of a ``.tnnproto``, read one after the other and checked."""

import re
from collections.abc import Mapping, Sequence
from math import inf, isnan
from pathlib import Path

from quantjit.errors import FormatError

LIMIT = 2**31  # TNN keeps every number and every count of elements in an int
_SHOWN = 40
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?(inf|nan|([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?)", re.IGNORECASE)


def shown(text: object) -> str:
    """Return what was found, cut to the length of a message."""
    found = repr(text)
    return found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."


class Fields:
    """The words of one record, taken one after the other; every error names the place."""

    def __init__(self, path: Path, where: str, words: Sequence[str]) -> None:
        self._path, self._where = path, where
        self._words, self._next = words, 0

    def error(self, expected: str, found: str) -> FormatError:
        """Make the error for this record."""
        return FormatError(self._path, self._where, expected, found)

    def more(self) -> bool:
        """Whether words are left."""
        return self._next < len(self._words)

    def left(self) -> int:
        """Return how many words are left."""
        return len(self._words) - self._next

    def word(self, name: str) -> str:
        """Take the next word."""
        if not self.more():
            raise self.error(f"the field {name}", "the end of the record")
        self._next += 1
        return self._words[self._next - 1]

    def integer(self, name: str, default: int | None = None, *, least: int = -LIMIT) -> int:
        """Take a 32-bit integer of at least `least`; with a default it may be missing."""
        if default is not None and not self.more():
            return default
        text = self.word(name)
        value = int(text) if _INTEGER.fullmatch(text) else None
        if value is None or not least <= value < LIMIT:
            limits = "" if least == -LIMIT else f" >= {least}"
            raise self.error(f"an integer{limits} for {name}", shown(text))
        return value

    def number(self, name: str, default: float | None = None, *, finite: bool = True) -> float:
        """Take a number."""
        if default is not None and not self.more():
            return default
        text = self.word(name)
        value = float(text) if _NUMBER.fullmatch(text) else None
        if value is None or isnan(value) or (finite and abs(value) == inf):
            raise self.error(f"a number for {name}", shown(text))
        return value

    def choice(self, name: str, names: Mapping[int, str], default: int | None = None) -> str:
        """Take a number that stands for one of the names."""
        value = self.integer(name, default)
        if value not in names:
            known = ", ".join(f"{key} ({text})" for key, text in names.items())
            raise self.error(f"{name} to be one of {known}", str(value))
        return names[value]

    def counted(self, name: str) -> tuple[int, ...]:
        """Take a count, then as many integers."""
        count = self.integer(f"number of {name}", least=0)
        if count > self.left():
            raise self.error(f"{count} {name}", f"{self.left()} words")
        return tuple(self.integer(name) for _ in range(count))

    def rest(self, name: str) -> tuple[int, ...]:
        """Take all words that are left, integers."""
        return tuple(self.integer(name) for _ in range(self.left()))

    def names(self, count: int) -> tuple[str, ...]:
        """Take so many words."""
        if count > self.left():
            raise self.error(f"{count} blob names", f"{self.left()} words")
        return tuple(self.word("blob name") for _ in range(count))

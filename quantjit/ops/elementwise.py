"""Binary ops with broadcasting: add, sub, mul, div, maximum, minimum."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BinaryAttrs:
    """constant_index: which operand (0 or 1) is ``weights["constant"]``; -1: both are blobs."""

    constant_index: int = -1

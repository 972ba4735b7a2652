"""Matrix product."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MatMulAttrs:
    """constant_index: which operand (0 or 1) is ``weights["weight"]``; -1: both are blobs."""

    constant_index: int = -1

"""Max and average pooling."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolingAttrs:
    """Attributes of ``pooling``.

    kind: "max" or "average" (over the valid taps only, as TNN does, unless count_include_pad).
    kernel 0 x 0: global.  pads: top, bottom, left, right; pad_mode as in convolution.
    adaptive: output_h x output_w windows are derived.
    """

    kind: str
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_mode: str = "explicit"
    ceil_mode: bool = False
    adaptive: bool = False
    output_h: int = 0
    output_w: int = 0
    kernel_index_h: int = -1
    kernel_index_w: int = -1
    count_include_pad: bool = False

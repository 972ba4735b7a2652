"""Convolution and deconvolution."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConvolutionAttrs:
    """Attributes of ``convolution`` and ``deconvolution``.

    in_channels, out_channels: totals over all groups.  pads: top, bottom, left, right.
    pad_mode: "explicit" uses `pads`; "same" (TensorFlow: the extra pixel goes to the end), "valid",
    and, for deconvolution, "full" and "output" (TNN pad types 0, 1, 2, 3) derive them.
    activation: "none", "relu", "relu6" or "swish", applied to the result.
    fusion: in memory only, never in a file: "none"; "add_activation" adds the second input before
    the activation, "activation_add" after it (TNN's load-time fusion of int8 networks).
    """

    group: int
    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_mode: str = "explicit"
    dilation_h: int = 1
    dilation_w: int = 1
    has_bias: bool = True
    activation: str = "none"
    fusion: str = "none"

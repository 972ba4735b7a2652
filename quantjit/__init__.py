"""quantjit: post-training int8 quantization of convolutional networks."""

__version__ = "0.1.0"

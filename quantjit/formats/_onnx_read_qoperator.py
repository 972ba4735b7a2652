"""Quantized operators (QLinearConv, QGemm ...) said as float ones between conversions.

The two forms mean the same; what reads the one then reads the other.  Operators that only move or
clip codes are put between conversions of their input's scale.  What cannot be said so is left, for
the reader to name.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from quantjit.errors import FormatError
from quantjit.formats._onnx_read_file import Source, place_of
from quantjit.graph import Array

_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul", "QLinearMatMul": "MatMul"}
_UNARY = {
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
    "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
}
_SUFFIX = "_quantized"  # of the names of codes, as quantjit writes them


def with_conversions(source: Source) -> Source:
    """Return the file with its quantized operators as float ones between conversions."""
    known = {"QLinearConv", "QGemm", "QLinearConcat", *_BINARY, *_UNARY}
    if not any(node.op_type in known for node in source.nodes):
        return source
    return _Rewriter(source).run()


class _Rewriter:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.constants: dict[str, Array] = dict(source.constants)
        self.nodes: list[Any] = []
        self.params: dict[str, tuple[str, str]] = {}  # codes -> names of scale and zero point
        self.written: set[str] = set()  # what a DequantizeLinear gives already
        self.reals: dict[str, str] = {
            str(node.input[0]): str(node.output[0])
            for node in source.nodes
            if node.op_type == "DequantizeLinear" and node.input and node.output
        }
        self.taken = {name for node in source.nodes for name in (*node.input, *node.output)}
        self.taken |= {blob.name for blob in source.inputs}

    def run(self) -> Source:
        writers: dict[str, Callable[[Any], None]] = {
            "QLinearConv": self._convolution,
            "QGemm": self._gemm,
            "QLinearConcat": self._concat,
            "Clip": self._clip,
            **dict.fromkeys(_BINARY, self._binary),
            **dict.fromkeys(_UNARY, self._unary),
            **dict.fromkeys(_MOVES, self._move),
        }
        for node in self.source.nodes:
            if node.op_type == "QuantizeLinear" and len(node.input) > 2:
                self.params[node.output[0]] = (node.input[1], node.input[2])
            if node.op_type == "DequantizeLinear" and node.output[0] in self.written:
                continue
            try:
                writers.get(node.op_type, self.nodes.append)(node)
            except (LookupError, ValueError, TypeError):  # from unpacking what is not there
                raise FormatError(
                    self.source.path,
                    place_of(node),
                    "inputs that fit its operator",
                    f"{len(node.input)} that do not, or that are no constants",
                ) from None
        return replace(self.source, nodes=tuple(self.nodes), constants=self.constants)

    # -------------------------------------------------------------- names and conversions

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken or name in self.constants:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name

    def _real(self, codes: str, scale: str, zero: str) -> str:
        """Return the tensor of the values of codes, after a DequantizeLinear of their own."""
        if codes not in self.reals:
            self.reals[codes] = self._fresh(codes.removesuffix(_SUFFIX))
        name = self.reals[codes]
        if name not in self.written:
            self.written.add(name)
            self.nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero], [name]))
        return name

    def _weight(self, codes: str, scale: str, zero: str, axis: int) -> str:
        name = self._fresh(f"{codes}:real")
        self.nodes.append(
            helper.make_node("DequantizeLinear", [codes, scale, zero], [name], axis=axis)
        )
        return name

    def _bias(self, codes: str, scale: str, weight_scale: str) -> str:
        product = self.constants[scale].reshape(-1) * self.constants[weight_scale].reshape(-1)
        steps = self._fresh(f"{codes}:scale")
        fitting = product if product.size > 1 else product.reshape(())
        self.constants[steps] = np.asarray(fitting, np.float32)
        name = self._fresh(f"{codes}:real")
        self.nodes.append(helper.make_node("DequantizeLinear", [codes, steps], [name], axis=0))
        return name

    def _write(
        self,
        node: Any,
        op: str,
        inputs: list[str],
        scale: str,
        zero: str,
        without: tuple[str, ...] = (),
    ) -> None:
        """Write the float operator and, behind it, the QuantizeLinear."""
        raw = self._fresh(f"{node.output[0]}:raw")
        made = helper.make_node(op, inputs, [raw], node.name or node.output[0])
        made.attribute.extend(item for item in node.attribute if item.name not in without)
        self.nodes.append(made)
        self.nodes.append(helper.make_node("QuantizeLinear", [raw, scale, zero], [node.output[0]]))
        self.params[node.output[0]] = (scale, zero)

    # -------------------------------------------------------------- operators

    def _convolution(self, node: Any) -> None:
        x, x_scale, x_zero, w, w_scale, w_zero, scale, zero, *bias = node.input
        inputs = [self._real(x, x_scale, x_zero), self._weight(w, w_scale, w_zero, 0)]
        if bias and bias[0]:
            inputs.append(self._bias(bias[0], x_scale, w_scale))
        self._write(node, "Conv", inputs, scale, zero)

    def _gemm(self, node: Any) -> None:
        if len(node.input) < 9 or not node.input[8]:
            self.nodes.append(node)
            return
        x, x_scale, x_zero, w, w_scale, w_zero, bias, scale, zero = node.input
        flags = {item.name: item.i for item in node.attribute}
        axis = 0 if flags.get("transB") else 1
        inputs = [self._real(x, x_scale, x_zero), self._weight(w, w_scale, w_zero, axis)]
        if bias:
            inputs.append(self._bias(bias, x_scale, w_scale))
        self._write(node, "Gemm", inputs, scale, zero)

    def _binary(self, node: Any) -> None:
        a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = node.input
        right = (
            self._weight(b, b_scale, b_zero, self.constants[b].ndim - 1)
            if b in self.constants
            else self._real(b, b_scale, b_zero)
        )
        inputs = [self._real(a, a_scale, a_zero), right]
        self._write(node, _BINARY[node.op_type], inputs, scale, zero)

    def _unary(self, node: Any) -> None:
        flags = {item.name: item.i for item in node.attribute}
        if flags.get("channels_last"):
            self.nodes.append(node)
            return
        x, x_scale, x_zero, scale, zero = node.input
        inputs = [self._real(x, x_scale, x_zero)]
        self._write(node, _UNARY[node.op_type], inputs, scale, zero, ("channels_last",))

    def _concat(self, node: Any) -> None:
        scale, zero, *parts = node.input
        inputs = [self._real(*parts[start : start + 3]) for start in range(0, len(parts), 3)]
        self._write(node, "Concat", inputs, scale, zero)

    def _move(self, node: Any) -> None:
        """Put a node that only moves codes between conversions of their scale."""
        codes = node.input[0]
        if codes not in self.params or len(node.output) > 1:
            self.nodes.append(node)
            return
        scale, zero = self.params[codes]
        inputs = [self._real(codes, scale, zero), *node.input[1:]]
        self._write(node, node.op_type, inputs, scale, zero)

    def _clip(self, node: Any) -> None:
        """Say a ReLU or ReLU6 on codes as one of reals; another clip of codes is left."""
        codes = node.input[0]
        if codes not in self.params:
            self.nodes.append(node)
            return
        scale, zero = self.params[codes]
        bounds = [self.constants.get(name) if name else None for name in node.input[1:]]
        step, start = float(self.constants[scale]), int(self.constants[zero])
        low, high = (*(None if x is None else int(x) for x in bounds), None, None)[:2]
        six = np.rint(np.float32(6) / np.float32(step)) + start
        six = min(six, np.iinfo(self.constants[zero].dtype).max)
        inputs = [self._real(codes, scale, zero)]
        if low == start and high is None:
            self._write(node, "Relu", inputs, scale, zero)
        elif low == start and high == six:
            for role, value in (("low", 0.0), ("high", 6.0)):
                name = self._fresh(f"{node.output[0]}:{role}")
                self.constants[name] = np.array(value, np.float32)
                inputs.append(name)
            self._write(node, "Clip", inputs, scale, zero)
        else:
            self.nodes.append(node)

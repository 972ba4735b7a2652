"""Int8 networks in ONNX: between QuantizeLinear and DequantizeLinear, or as quantized operators.

QDQ: every int8 node reads what a DequantizeLinear gives and writes into a QuantizeLinear; weights
are int8 and biases int32, each behind a DequantizeLinear of its own.  Runtimes find the pattern and
run the node in int8; where they do not, the file says the same in float.  A ReLU or ReLU6 whose
range is that of the codes is not written: saturation does its work.

Quantized operators: QLinearConv, and of onnxruntime's own domain QGemm, QLinearAdd, QLinearConcat,
QLinearGlobalAveragePool, QLinearAveragePool; what only moves or selects codes runs on the codes.
An int8 node without such an operator stands between DequantizeLinear and QuantizeLinear.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.formats._onnx_write_call import MICROSOFT, Call, Model
from quantjit.formats._onnx_write_layers import (
    restore_rank,
    write_activation,
    write_convolution,
    write_pooling,
)
from quantjit.formats._onnx_write_table import translate
from quantjit.graph import Array, Graph, Node
from quantjit.quant import NodeQuant, QuantParams

_WEIGHTED = ("convolution", "inner_product")
_CLIPS = ("relu", "relu6")
_MOVES = ("flatten", "reshape", "permute", "squeeze", "unsqueeze")
_SUFFIXES = ("_quantized", "_scale", "_zero_point")
_UNSIGNED = 128  # what is added to int8 codes for uint8


class Int8Writer:
    """Writes the nodes of an int8 network into a model."""

    def __init__(self, model: Model, graph: Graph, *, qdq: bool) -> None:
        self._model, self._graph, self._qdq = model, graph, qdq
        self._unsigned = graph.arithmetic == "onnx-uint8"
        given = [blob.name for blob in graph.inputs] + list(graph.constants)
        self._real = {name: name for name in given}  # blob -> tensor with its real values
        self._codes: dict[str, str] = {}  # blob -> tensor with its codes
        self._dequantized: dict[str, str] = {}  # blob -> tensor of its codes' values
        self._params: dict[str, tuple[str, str]] = {}  # blob -> names of scale and zero point

    def write_nodes(self) -> None:
        """Write all nodes, then the network's outputs that only exist as codes."""
        for node in self._graph.nodes:
            if node.quant is None:
                inputs = tuple(self._real_of(blob) for blob in node.inputs)
                translate(Call(self._model, node, inputs, node.outputs))
                self._real |= {blob: blob for blob in node.outputs}
            elif node.op in _CLIPS and self._is_done_by_codes(node):
                self._codes[node.outputs[0]] = self._codes_of(node.inputs[0])
            elif self._qdq or not self._write_operator(node, node.quant):
                self._write_between(node, node.quant)
        for blob in self._graph.outputs:
            self._real_of(blob)

    # -------------------------------------------------------------- blobs

    def _scale(self, blob: str) -> QuantParams:
        params = self._graph.scales.get(blob)
        if params is None:
            raise GraphError(f"blob {blob!r}", "an int8 node needs its scale")
        if params.per_channel:
            raise GraphError(
                f"blob {blob!r}",
                "ONNX has one scale a blob, it has one a channel; quantize with merge type mix",
            )
        if params.scale[0] == 0:
            raise GraphError(f"blob {blob!r}", "ONNX needs scales above 0, its is 0")
        return params

    def _code_array(self, codes: Array) -> Array:
        """Codes in the type that the file has for blobs."""
        if self._unsigned:
            return (codes.astype(np.int16) + _UNSIGNED).astype(np.uint8)
        return codes.astype(np.int8)

    def _params_of(self, blob: str) -> tuple[str, str]:
        if blob not in self._params:
            params = self._scale(blob)
            self._params[blob] = (
                self._model.constant(f"{blob}_scale", np.array(params.scale[0], np.float32)),
                self._model.constant(
                    f"{blob}_zero_point", self._code_array(np.array(params.zero_point[0]))
                ),
            )
        return self._params[blob]

    def _quantized(self, blob: str, source: str) -> str:
        """Write a QuantizeLinear with the scale of `blob`; return the name of the codes."""
        codes = self._model.fresh(f"{blob}_quantized")
        self._model.add(
            "QuantizeLinear", [source, *self._params_of(blob)], [codes], f"{blob}_QuantizeLinear"
        )
        return codes

    def _codes_of(self, blob: str) -> str:
        if blob not in self._codes:
            self._codes[blob] = self._quantized(blob, self._real[blob])
        return self._codes[blob]

    def _dequantize(self, blob: str, codes: str, name: str) -> str:
        self._model.add(
            "DequantizeLinear", [codes, *self._params_of(blob)], [name], f"{blob}_DequantizeLinear"
        )
        return name

    def _dequantized_of(self, blob: str) -> str:
        """Tensor of the values that the codes of a blob stand for."""
        if blob not in self._dequantized:
            # the blob's own name is that of its values, which are float already or only codes
            name = self._model.fresh(f"{blob}_dequantized") if blob in self._real else blob
            self._dequantized[blob] = self._dequantize(blob, self._codes_of(blob), name)
            self._real.setdefault(blob, name)
        return self._dequantized[blob]

    def _real_of(self, blob: str) -> str:
        return self._real[blob] if blob in self._real else self._dequantized_of(blob)

    # -------------------------------------------------------------- weights

    def _weight_scale(self, node: Node, quant: NodeQuant) -> NDArray[np.float32]:
        """Return the weights' own steps: times the input's step they are the stored product."""
        source = self._scale(node.inputs[0]).scale[0]
        product = quant.weight_scale
        steps: NDArray[np.float32] = (product / source).astype(np.float32)
        for near in (np.nextafter(steps, np.float32(0)), np.nextafter(steps, np.float32(np.inf))):
            steps = np.where((steps * source != product) & (near * source == product), near, steps)
        tiny = np.finfo(np.float32).tiny
        if not (np.isfinite(steps) & (steps >= tiny)).all():
            raise GraphError(
                f"node {node.name!r}", "has a weight scale that ONNX cannot hold beside its input's"
            )
        return steps

    def _weight_zero(self, node: Node, quant: NodeQuant) -> NDArray[np.int8]:
        zero = quant.weight_zero_point
        if zero.size > 1 and (zero != zero[0]).any():
            raise GraphError(
                f"node {node.name!r}",
                "onnxruntime needs one zero point for all channels of a weight; "
                "use a symmetric weight method",
            )
        return zero

    def _stored(self, node: Node, quant: NodeQuant) -> dict[str, tuple[str, ...]]:
        """Write codes, scales and zero points; return the names of the three by role."""
        steps, zero = self._weight_scale(node, quant), self._weight_zero(node, quant)
        per_channel = steps.size > 1
        product = (steps * self._scale(node.inputs[0]).scale[0]).astype(np.float32)
        arrays: dict[str, tuple[Array, Array, Array]] = {
            "weight": (np.asarray(node.weights["weight"], np.int8), steps, zero)
        }
        if node.attrs.has_bias:
            bias = np.asarray(node.weights["bias"], np.int32)
            arrays["bias"] = (bias, product, np.zeros(zero.shape, np.int32))
        names = {}
        for role, (codes, scale, zeros) in arrays.items():
            fitted = (scale, zeros) if per_channel else (scale.reshape(()), zeros.reshape(()))
            stored: list[Array] = [codes, *fitted]
            names[role] = tuple(
                self._model.constant(f"{node.name}:{role}{suffix}", array)
                for suffix, array in zip(_SUFFIXES, stored, strict=True)
            )
        return names

    def _dequantized_weights(self, node: Node, quant: NodeQuant) -> dict[str, str]:
        if node.op not in _WEIGHTED:
            return {}
        stored = {}
        axis = 0 if quant.weight_scale.size > 1 else None
        for role, names in self._stored(node, quant).items():
            stored[role] = self._model.fresh(f"{node.name}:{role}")
            self._model.add(
                "DequantizeLinear",
                names,
                [stored[role]],
                f"{node.name}:{role}_DequantizeLinear",
                axis=axis,
            )
        return stored

    # -------------------------------------------------------------- QDQ

    def _write_between(self, node: Node, quant: NodeQuant) -> None:
        """Write a node in float between DequantizeLinear and QuantizeLinear."""
        inputs = tuple(self._dequantized_of(blob) for blob in node.inputs)
        raw = tuple(self._model.fresh(f"{blob}_raw") for blob in node.outputs)
        call = Call(self._model, node, inputs, raw, self._dequantized_weights(node, quant))
        blob = node.outputs[0]
        activation = node.attrs.activation if node.op == "convolution" else "none"
        if activation != "none" and self._clips_as(blob, activation):
            write_convolution(call, activate=False)
        elif activation != "none":
            # The activation does more than the codes' range: the convolution needs codes of its
            # own, or no runtime would run it in int8.
            linear = self._model.fresh(f"{blob}_linear")
            write_convolution(replace(call, outputs=(linear,)), activate=False)
            codes = self._quantized(blob, linear)
            again = self._dequantize(blob, codes, self._model.fresh(f"{blob}_linear_dequantized"))
            write_activation(call, activation, again)
        elif node.op == "inner_product" and len(self._model.shapes[blob]) > 2:
            self._write_gemm(call)
            return
        else:
            translate(call)
        for name, source in zip(node.outputs, raw, strict=True):
            self._codes[name] = self._quantized(name, source)

    def _write_gemm(self, call: Call) -> None:
        """Write a Gemm with codes on both sides of what changes the rank before and behind it."""
        source, blob = call.node.inputs[0], call.node.outputs[0]
        flat = call.step("Flatten", call.inputs, "flat", axis=call.attrs.axis)
        again = self._model.fresh(f"{source}_flat_dequantized")
        self._dequantize(source, self._quantized(source, flat), again)
        inputs = [again, *call.stored.values()]
        product = self._model.fresh(f"{blob}_product")
        self._model.add("Gemm", inputs, [product], call.node.name, transB=1)
        again = self._model.fresh(f"{blob}_product_dequantized")
        self._dequantize(blob, self._quantized(blob, product), again)
        restore_rank(call, again)
        self._codes[blob] = self._quantized(blob, call.outputs[0])

    def _clips_as(self, blob: str, activation: str) -> bool:
        """Whether the codes' range alone does what the activation does."""
        params = self._scale(blob)
        highest = (127 - int(params.zero_point[0])) * float(params.scale[0])
        starts_at_zero = int(params.zero_point[0]) == -_UNSIGNED
        return starts_at_zero and (activation == "relu" or highest <= 6)

    def _is_done_by_codes(self, node: Node) -> bool:
        """Whether an activation leaves codes as they are: they end where it clips."""
        source, blob = node.inputs[0], node.outputs[0]
        return self._scale(source) == self._scale(blob) and self._clips_as(blob, node.op)

    # -------------------------------------------------------------- quantized operators

    def _write_operator(self, node: Node, quant: NodeQuant) -> bool:
        """Write a node on codes; False where there is no operator for it."""
        writers: dict[str, Callable[[Node, NodeQuant], bool]] = {
            "convolution": self._q_convolution,
            "inner_product": self._q_gemm,
            "add": self._q_add,
            "concat": self._q_concat,
            "pooling": self._q_pooling,
            "relu": self._q_relu,
            **dict.fromkeys(_MOVES, self._q_move),
        }
        return node.op in writers and writers[node.op](node, quant)

    def _new_codes(self, blob: str) -> str:
        self._codes[blob] = self._model.fresh(f"{blob}_quantized")
        return self._codes[blob]

    def _q_convolution(self, node: Node, quant: NodeQuant) -> bool:
        blob, activation = node.outputs[0], node.attrs.activation
        source, stored = node.inputs[0], self._stored(node, quant)
        inputs = [self._codes_of(source), *self._params_of(source), *stored["weight"]]
        inputs += self._params_of(blob)
        inputs += stored["bias"][:1] if "bias" in stored else ()
        bare = activation == "none" or self._clips_as(blob, activation)
        codes = self._new_codes(blob)
        out = codes if bare else self._model.fresh(f"{blob}_linear_quantized")
        # Only the attributes are those of the float operator: its inputs are replaced.
        holder = Model(self._model.shapes)
        plain = replace(node, attrs=replace(node.attrs, activation="none", has_bias=False))
        write_convolution(Call(holder, plain, (source,), (out,), {"weight": ""}))
        self._model.add("QLinearConv", inputs, [out], node.name)
        self._model.nodes[-1].attribute.extend(holder.nodes[-1].attribute)
        if not bare:
            self._clip_codes(node, blob, out, codes, 6.0 if activation == "relu6" else None)
        return True

    def _clip_codes(
        self, node: Node, blob: str, source: str, codes: str, highest: float | None
    ) -> None:
        params = self._scale(blob)
        zero = int(params.zero_point[0])
        bounds = [zero]
        if highest is not None:
            six = np.rint(np.float32(highest) / params.scale[0]) + zero
            bounds.append(int(min(six, 127)))
        names = [
            self._model.constant(f"{node.name}:{role}", self._code_array(np.array(bound)))
            for role, bound in zip(("low", "high"), bounds, strict=False)
        ]
        self._model.add("Clip", [source, *names], [codes], f"{node.name}:activation")

    def _q_gemm(self, node: Node, quant: NodeQuant) -> bool:
        source, blob = node.inputs[0], node.outputs[0]
        codes = self._codes_of(source)
        call = Call(self._model, node, (codes,), (blob,))
        if len(self._model.shapes[source]) != 2 or node.attrs.axis != 1:
            codes = call.step("Flatten", [codes], "flat", axis=node.attrs.axis)
        stored = self._stored(node, quant)
        bias = stored["bias"][0] if "bias" in stored else ""
        inputs = [codes, *self._params_of(source), *stored["weight"], bias, *self._params_of(blob)]
        out = self._new_codes(blob)
        higher = len(self._model.shapes[blob]) > 2
        product = self._model.fresh(f"{blob}_product_quantized") if higher else out
        self._model.add("QGemm", inputs, [product], node.name, MICROSOFT, transB=1, alpha=1.0)
        if higher:
            restore_rank(replace(call, outputs=(out,)), product)
        return True

    def _q_add(self, node: Node, quant: NodeQuant) -> bool:
        del quant
        if len(node.inputs) != 2:
            return False
        inputs = [
            name for blob in node.inputs for name in (self._codes_of(blob), *self._params_of(blob))
        ]
        inputs += self._params_of(node.outputs[0])
        out = self._new_codes(node.outputs[0])
        self._model.add("QLinearAdd", inputs, [out], node.name, MICROSOFT)
        return True

    def _q_concat(self, node: Node, quant: NodeQuant) -> bool:
        del quant
        inputs = list(self._params_of(node.outputs[0]))
        for blob in node.inputs:
            inputs += [self._codes_of(blob), *self._params_of(blob)]
        out = self._new_codes(node.outputs[0])
        self._model.add("QLinearConcat", inputs, [out], node.name, MICROSOFT, axis=node.attrs.axis)
        return True

    def _q_pooling(self, node: Node, quant: NodeQuant) -> bool:
        source, blob = node.inputs[0], node.outputs[0]
        if node.attrs.kind == "max":
            return self._q_move(node, quant)
        holder = Model(self._model.shapes)
        write_pooling(Call(holder, node, (source,), (blob,)))
        (float_node, *others) = reversed(holder.nodes)
        if others:
            return False
        inputs = [self._codes_of(source), *self._params_of(source), *self._params_of(blob)]
        out = self._new_codes(blob)
        self._model.add(f"QLinear{float_node.op_type}", inputs, [out], node.name, MICROSOFT)
        self._model.nodes[-1].attribute.extend(float_node.attribute)
        return True

    def _q_relu(self, node: Node, quant: NodeQuant) -> bool:
        del quant
        source, blob = node.inputs[0], node.outputs[0]
        if self._scale(source) != self._scale(blob):
            return False
        self._clip_codes(node, blob, self._codes_of(source), self._new_codes(blob), None)
        return True

    def _q_move(self, node: Node, quant: NodeQuant) -> bool:
        """Run what only moves or selects elements on the codes, which keep their scale."""
        del quant
        source, blob = node.inputs[0], node.outputs[0]
        if self._scale(source) != self._scale(blob):
            return False
        codes = self._codes_of(source)
        translate(Call(self._model, node, (codes,), (self._new_codes(blob),)))
        return True

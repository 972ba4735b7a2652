"""Unary ops: activations and elementwise functions.

The int8 form of all but ReLU is a table: f(q * input scale) / output scale, rounded, for each of
the 256 codes, as ``CpuUnaryLayerAcc`` of TNN computes for each element
(``source/tnn/device/cpu/acc/cpu_unary_layer_acc.cc``; zero points are ignored there).  In ONNX's
arithmetic everything is such a table, with zero points and rounded half to even.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels import elementwise as kernels
from quantjit.kernels.codes import relu_int8_into, translate_into
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape
from quantjit.ops.reformat import CODES, channel_view, code_tables, same_shape
from quantjit.quant import QuantParams

Prepare = Callable[[Request], Runner]


@dataclass(frozen=True, slots=True)
class PReluAttrs:
    """channel_shared: one slope for all channels; has_filler: kept as read (TNN)."""

    channel_shared: bool = False
    has_filler: bool = False


@dataclass(frozen=True, slots=True)
class EluAttrs:
    """x if x > 0 else alpha * (exp(x) - 1)."""

    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class ClipAttrs:
    """Clamp to [minimum, maximum]."""

    minimum: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True, slots=True)
class HardAttrs:
    """hard_sigmoid: clamp(alpha * x + beta, 0, 1); hard_swish: x times that.

    With two inputs, hard_swish is the first times the clamp of the second.
    """

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True, slots=True)
class PowerAttrs:
    """(scale * x + shift) ** exponent."""

    exponent: float = 1.0
    scale: float = 1.0
    shift: float = 0.0


def _clip(bounds: Callable[[Any], tuple[float, float]]) -> Prepare:
    def prepare(request: Request) -> Runner:
        minimum, maximum = (np.float32(bound) for bound in bounds(request.node.attrs))

        def run(inputs: Arrays, outputs: Arrays) -> None:
            kernels.clip_into(inputs[0].reshape(-1), minimum, maximum, outputs[0].reshape(-1))

        return run

    return prepare


def _transcendental(code: int) -> Prepare:
    def prepare(request: Request) -> Runner:
        alpha = float(getattr(request.node.attrs, "alpha", 0.0))

        def run(inputs: Arrays, outputs: Arrays) -> None:
            kernels.activate_into(code, inputs[0].reshape(-1), alpha, outputs[0].reshape(-1))

        return run

    return prepare


def _ufunc(function: Any) -> Prepare:
    """Run a NumPy function: it is vectorized already, and a kernel would only cost compile time."""

    def prepare(request: Request) -> Runner:
        del request

        def run(inputs: Arrays, outputs: Arrays) -> None:
            with np.errstate(all="ignore"):  # infinities and NaN are results here, as in TNN
                function(inputs[0], out=outputs[0])

        return run

    return prepare


def _prepare_power(request: Request) -> Runner:
    attrs: PowerAttrs = request.node.attrs
    scale, shift, exponent = (
        np.float32(value) for value in (attrs.scale, attrs.shift, attrs.exponent)
    )

    def run(inputs: Arrays, outputs: Arrays) -> None:
        out: NDArray[np.float32] = outputs[0]
        with np.errstate(all="ignore"):
            np.multiply(inputs[0], scale, out=out)
            np.add(out, shift, out=out)
            np.power(out, exponent, out=out)

    return run


def _hard(*, swish: bool) -> Prepare:
    def prepare(request: Request) -> Runner:
        attrs: HardAttrs = request.node.attrs
        alpha, beta = np.float32(attrs.alpha), np.float32(attrs.beta)
        nothing = np.empty(0, np.float32)

        def run(inputs: Arrays, outputs: Arrays) -> None:
            factor = inputs[0].reshape(-1) if swish else nothing
            kernels.hard_sigmoid_into(
                inputs[-1].reshape(-1), alpha, beta, factor, outputs[0].reshape(-1)
            )

        return run

    return prepare


def _infer_hard_swish(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    if any(shape != inputs[0] for shape in inputs):
        raise GraphError(f"node {node.name!r}", f"inputs {inputs} of hard_swish differ in shape")
    return (inputs[0],)


def _infer_prelu(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape, slope = inputs[0], node.weights.get("slope")
    channels = shape[1] if len(shape) > 1 else 1
    shared = node.attrs.channel_shared
    if slope is not None and slope.size != channels and not (slope.size == 1 or shared):
        raise GraphError(
            f"node {node.name!r}", f"{slope.size} slopes do not fit the channels of {shape}"
        )
    return (shape,)


def _prepare_prelu(request: Request) -> Runner:
    node, shape = request.node, request.input_shapes[0]
    slope = np.ascontiguousarray(node.weights["slope"], np.float32).reshape(-1)
    if node.attrs.channel_shared:
        slope = slope[:1]
    view = channel_view(node, shape, slope.size)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        kernels.prelu_into(inputs[0].reshape(view), slope, outputs[0].reshape(view))

    return run


def _prepare_relu_int8(request: Request) -> Runner:
    """max(0, q) without rescaling or zero point, as TNN's naive device; in ONNX by table."""
    if request.is_onnx:
        return _by_table(_clip(lambda _: (0.0, np.inf)))(request)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        relu_int8_into(inputs[0].reshape(-1), outputs[0].reshape(-1))

    return run


def _by_table(prepare_float: Prepare) -> Prepare:
    """Make the int8 form of an elementwise function: a table a channel."""

    def prepare(request: Request) -> Runner:
        shape = request.input_shapes[0]
        source, target = request.input_quant[0], request.output_quant[0]
        channels = max(source.scale.size, target.scale.size)
        view = channel_view(request.node, shape, channels)
        reals = np.empty((channels, CODES.size), np.float32)
        codes = CODES - source.zero_point[:, None] if request.is_onnx else CODES
        reals[...] = codes * source.scale[:, None]
        results = np.empty_like(reals)
        on_codes = replace(request, input_shapes=(reals.shape,), output_shapes=(reals.shape,))
        prepare_float(on_codes)((reals,), (results,))
        zeros = target.zero_point if request.is_onnx else 0
        tables = code_tables(results, QuantParams(target.scale, zeros), half_even=request.is_onnx)

        def run(inputs: Arrays, outputs: Arrays) -> None:
            translate_into(inputs[0].reshape(view), tables, 0, outputs[0].reshape(view))

        return run

    return prepare


def _prepare_relu6_int8(request: Request) -> Runner:
    if not request.is_onnx:
        raise GraphError(f"node {request.node.name!r}", "op 'relu6' has no int8 form in TNN")
    return _by_table(_clip(lambda _: (0.0, 6.0)))(request)


def _unary(name: str, prepare_float: Prepare, attrs: type = NoAttrs, *, int8: bool = True) -> Op:
    prepare_int8 = _by_table(prepare_float) if int8 else None
    return Op(name, attrs, same_shape, prepare_float, prepare_int8)


OPS = (
    Op(
        "relu",
        NoAttrs,
        same_shape,
        _clip(lambda _: (0.0, np.inf)),
        _prepare_relu_int8,
    ),
    Op("relu6", NoAttrs, same_shape, _clip(lambda _: (0.0, 6.0)), _prepare_relu6_int8),
    _unary("clip", _clip(lambda attrs: (attrs.minimum, attrs.maximum)), ClipAttrs),
    _unary("sigmoid", _transcendental(kernels.SIGMOID)),
    _unary("tanh", _transcendental(kernels.TANH)),
    _unary("swish", _transcendental(kernels.SWISH)),
    _unary("exp", _transcendental(kernels.EXP)),
    _unary("elu", _transcendental(kernels.ELU), EluAttrs),
    _unary("softplus", _transcendental(kernels.SOFTPLUS)),
    _unary("erf", _transcendental(kernels.ERF)),
    _unary("gelu", _transcendental(kernels.GELU), int8=False),
    _unary("abs", _ufunc(np.abs)),
    _unary("neg", _ufunc(np.negative)),
    _unary("log", _ufunc(np.log)),
    _unary("sqrt", _ufunc(np.sqrt)),
    _unary("floor", _ufunc(np.floor)),
    _unary("ceil", _ufunc(np.ceil)),
    _unary("reciprocal", _ufunc(np.reciprocal)),
    _unary("power", _prepare_power, PowerAttrs),
    _unary("hard_sigmoid", _hard(swish=False), HardAttrs),
    Op("hard_swish", HardAttrs, _infer_hard_swish, _hard(swish=True)),
    Op(
        "prelu",
        PReluAttrs,
        _infer_prelu,
        _prepare_prelu,
        required_weights=lambda _: ("slope",),
    ),
)

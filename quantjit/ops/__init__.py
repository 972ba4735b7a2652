"""One file per layer family; the registry `OPS` is filled by discovering them.

A file defines its frozen attribute dataclasses and a tuple ``OPS`` of `Op` values.  An op knows its
shapes, its float arithmetic and, where TNN has one, its int8 arithmetic; the executor never names
an op.  Running is split in two: ``prepare_*`` is called once per plan (weights are packed, sizes
are checked) and returns a runner that is called once per batch and only writes into the arrays
that it is given.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from quantjit.errors import UnsupportedError
from quantjit.graph import Node
from quantjit.kernels import simd
from quantjit.quant import QuantParams

Shape = tuple[int, ...]
Arrays = Sequence[NDArray[Any]]
Runner = Callable[[Arrays, Arrays], None]
"""``runner(inputs, outputs)``: C-contiguous arrays in the shapes that it was prepared for."""


@dataclass(frozen=True, slots=True)
class NoAttrs:
    """Attributes of an op that has none."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a runner is prepared for.

    node: with its attributes and weights.  input_shapes, output_shapes: batch first.
    input_quant, output_quant: blob scales, one per blob; empty in float.  arithmetic: that of the
    graph, see `quantjit.graph.Graph`.  threads: how many may run the node together.  exact_order:
    float sums in the order of TNN's naive device, to the bit, which is slower.
    """

    node: Node
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    input_quant: tuple[QuantParams, ...] = ()
    output_quant: tuple[QuantParams, ...] = ()
    arithmetic: str = "tnn"
    threads: int = 1
    exact_order: bool = False

    @property
    def uses_vectors(self) -> bool:
        """Whether the kernels of `quantjit.kernels.simd` may be used."""
        return simd.FORM != "portable" and not self.exact_order

    @property
    def is_onnx(self) -> bool:
        """Whether int8 results are rounded half to even, zero points added behind."""
        return self.arithmetic in {"onnx", "onnx-uint8"}

    @property
    def code_offset(self) -> int:
        """What the runtime's codes are above int8 ones, where float arithmetic can show it."""
        return 128 if self.arithmetic == "onnx-uint8" else 0


def no_macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Multiply-accumulates of an op that has none worth counting."""
    del node, inputs, outputs
    return 0


def moves_nothing(request: Request) -> tuple[int, ...] | None:
    """Answer of an op whose output is more than its inputs in another place."""
    del request
    return None


def moves_all(request: Request) -> tuple[int, ...] | None:
    """Answer of an op whose output is its only input under another shape."""
    del request
    return (0,)


@dataclass(frozen=True, slots=True)
class Op:
    """One type of layer.

    infer_shape(node, input_shapes) -> output shapes; raises GraphError naming the node.
    prepare_float(request) -> runner over float32 arrays.
    prepare_int8(request) -> runner over int8 arrays in the request's arithmetic: that of TNN's
    naive device or of onnxruntime; None where there is no int8 form.
    macs(node, input_shapes, output_shapes) -> multiply-accumulates for that batch.
    required_weights(attrs) -> the roles that must be in ``node.weights``.
    moves(request) -> where in the only output each input lies as it is, in elements, if the op does
    nothing else, so that inputs that are produced there need not be moved; None if it does more.
    """

    name: str
    attrs: type
    infer_shape: Callable[[Node, Sequence[Shape]], tuple[Shape, ...]]
    prepare_float: Callable[[Request], Runner]
    prepare_int8: Callable[[Request], Runner] | None = None
    macs: Callable[[Node, Sequence[Shape], Sequence[Shape]], int] = no_macs
    required_weights: Callable[[Any], tuple[str, ...]] = lambda _: ()
    moves: Callable[[Request], tuple[int, ...] | None] = moves_nothing


@cache
def registry() -> Mapping[str, Op]:
    """All ops by name, in the order of their files."""
    found: dict[str, Op] = {}
    for module in pkgutil.iter_modules(__path__):
        for op in importlib.import_module(f"{__name__}.{module.name}").OPS:
            found[op.name] = op
    return MappingProxyType(found)


def get(name: str) -> Op:
    """Return the op of that name; UnsupportedError lists the known ones."""
    try:
        return registry()[name]
    except KeyError:
        raise UnsupportedError("op", name, registry()) from None

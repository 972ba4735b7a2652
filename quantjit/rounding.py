"""Weights rounded so that the outputs of their layer are off by little, and biases to match.

Rounding each weight to the nearest code is best for the weights; for the outputs it is not: what a
layer reads is correlated, so that the error of one weight can be undone by those of others.  See
`quantjit.kernels.moments` for the method; no step of it makes the error of the layer's outputs
larger.  Nothing but codes of weights and biases changes: scales and structure stay, and a file with
them runs wherever the other did.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantjit.graph import Graph, Node, readonly
from quantjit.kernels import moments as kernels
from quantjit.moments import Moments, folded_weights
from quantjit.quant import QuantParams

_SWEEPS = 50  # over all codes of a row, at most; it mostly ends after five to ten
_BIAS_LIMIT = float(2**31 - 2**24)  # as in `quantjit.quantizer`


def round_node(
    node: Node,
    quantized: Node,
    source: QuantParams,
    moments: Moments,
    *,
    rounds: bool = True,
    corrects_bias: bool = True,
) -> Node:
    """Return the int8 node with codes that suit what it reads.

    node: of the float network; quantized: the same as int8.  source: scale of the blob it reads.
    rounds: change codes of weights.  corrects_bias: add what errors of weights and of codes make in
    the mean; codes are then chosen for what is left.  A node without a bias keeps none.
    """
    quant = quantized.quant
    if quant is None:
        raise AssertionError(f"{quantized.name} is float")
    weights = folded_weights(node, source)
    rows, size = weights.shape
    steps = np.broadcast_to(quant.weight_scale.astype(np.float64), rows).copy()
    zeros = np.broadcast_to(quant.weight_zero_point.astype(np.int64), rows)
    stored = quantized.weights["weight"]
    codes = stored.reshape(rows, size).astype(np.int64) - zeros[:, None]
    corrects_bias = corrects_bias and "bias" in quantized.weights
    if rounds:
        # Symmetric codes leave -128 out: TNN's and onnxruntime's kernels count on that.
        lowest = np.where(zeros == 0, -127, -128 - zeros)
        limits = np.ascontiguousarray([lowest, 127 - zeros])
        second = moments.second(is_centred=corrects_bias)
        gradients = np.empty_like(weights)
        kernels.descend_into(weights, steps, second, limits, _SWEEPS, gradients, codes)
    made = dict(quantized.weights)
    made["weight"] = readonly((codes + zeros[:, None]).astype(np.int8).reshape(stored.shape))
    if corrects_bias:
        shift = mean_error(weights, steps[:, None] * codes, moments)
        bias = made["bias"] + np.rint(shift / steps)
        made["bias"] = readonly(np.clip(bias, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32))
    return replace(quantized, weights=made)


def mean_error(
    weights: NDArray[np.float64], rounded: NDArray[np.float64], moments: Moments
) -> NDArray[np.float64]:
    """Return what the outputs lack in the mean, (rows,), for errors of weights and of codes.

    weights, rounded: (rows, size), in units of the codes they meet.
    """
    groups, size = moments.sums.shape
    wanted = np.einsum("grk,gk->gr", weights.reshape(groups, -1, size), moments.real_mean())
    made = np.einsum("grk,gk->gr", rounded.reshape(groups, -1, size), moments.mean())
    return np.asarray((wanted - made).ravel())


def with_nodes(graph: Graph, changed: Mapping[str, Node]) -> Graph:
    """Return the network with these nodes in place of those of the same names."""
    return graph.with_nodes(tuple(changed.get(node.name, node) for node in graph.nodes))

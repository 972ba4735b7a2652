"""Int8 ops without weights against every int8 blob inside TNN's naive device."""

import numpy as np
import pytest

from quantjit import formats, ops
from quantjit.executor import infer_shapes
from quantjit.passes.lower import lower

CASES = [
    ("rfb320", "b0w0t0", {"concat": 5, "add": 1}),  # scales by channel, dead ones among them
    ("rfb320", "b2w1t1", {"concat": 5, "add": 1}),
    ("rfb320", "b3w3t1", {"concat": 5, "add": 1}),  # zero points
    ("squeezenet_v1.0", "b0w0t0", {"concat": 8, "pooling": 3}),
    ("squeezenet_v1.0", "b2w1t1", {"concat": 8, "pooling": 3}),
    ("squeezenet_v1.0", "b3w0t0", {"concat": 8, "pooling": 3}),
]


@pytest.mark.shared
@pytest.mark.jit
@pytest.mark.parametrize(("model", "methods", "counts"), CASES)
def test_every_byte_of_tnn(shared, model, methods, counts):
    folder = shared / "golden" / model
    graph = lower(formats.load(folder / methods / f"{model}.quantized.tnnproto"))
    shapes = infer_shapes(graph)
    blobs = np.load(folder / f"int8_blobs_{methods}.npz")
    done = dict.fromkeys(counts, 0)
    for node in graph.nodes:
        if node.quant is None or node.op in {"convolution", "inner_product"}:
            continue
        inputs, outputs = (
            [blobs[name.replace("/", "_")].reshape(shapes[name]) for name in names]
            for names in (node.inputs, node.outputs)
        )
        request = ops.Request(
            node,
            tuple(shapes[blob] for blob in node.inputs),
            tuple(shapes[blob] for blob in node.outputs),
            tuple(graph.scales[blob] for blob in node.inputs),
            tuple(graph.scales[blob] for blob in node.outputs),
        )
        found = np.empty_like(outputs[0])
        ops.get(node.op).prepare_int8(request)(inputs, (found,))
        np.testing.assert_array_equal(found, outputs[0], err_msg=node.name)
        done[node.op] += 1
    assert done == counts

"""Fold ReLU and ReLU6 into the convolution before them.

As TNN does at load (``source/tnn/optimizer/net_optimizer_fuse_conv_post.cc``): the activation
follows its convolution directly in the order of nodes and nobody else reads the convolution's
output.  The fused node keeps the convolution's name and writes the activation's blob.
"""

from dataclasses import replace

from quantjit.graph import Graph, Node

_FUSABLE = ("relu", "relu6")


def fuse_activation(graph: Graph) -> Graph:
    """Return the network with the activations folded into their convolutions, float or int8."""
    readers = graph.readers()
    nodes: list[Node] = []
    for node in graph.nodes:
        before = nodes[-1] if nodes else None
        if (
            before is not None
            and before.op == "convolution"
            and before.attrs.activation == "none"
            and node.op in _FUSABLE
            and node.inputs == before.outputs
            and readers[node.inputs[0]] == [node]
            and node.inputs[0] not in graph.outputs
            and _fits(graph, before, node)
        ):
            attrs = replace(before.attrs, activation=node.op)
            nodes[-1] = replace(before, outputs=node.outputs, attrs=attrs)
        else:
            nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _fits(graph: Graph, convolution: Node, activation: Node) -> bool:
    """Tell whether the blob has the scale that an int8 convolution needs to write it.

    ONNX rounds to the convolution's own scale first, where it has one.
    """
    if convolution.quant is None:
        return True
    source, target = convolution.outputs[0], activation.outputs[0]
    if graph.is_onnx and source in graph.scales:
        return graph.scales[source] == graph.scales.get(target)
    return target in graph.scales

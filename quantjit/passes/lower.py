"""Make an int8 network explicit: what the runtime does to a quantized file before it runs.

TNN's loader, in its order (``source/tnn/optimizer``): convolution + activation; 1 x 1 convolution +
int8 add, whose sum then never passes through int8 ("net_optimizer_fuse_conv_add"); the activation
after the add; conversions wherever an int8 node and a float node meet, under the names of
"net_optimizer_insert_int8_reformat".  For ONNX an add is a node of its own.
"""

from dataclasses import replace

from quantjit.graph import Graph, Node
from quantjit.ops import NoAttrs
from quantjit.passes.fuse_activation import fuse_activation

SUFFIX = "_int8_reformat"


def lower(graph: Graph) -> Graph:
    """Return the network as it is executed; a float network only has its activations fused."""
    graph = fuse_activation(graph)
    if not graph.is_quantized:
        return graph
    if graph.is_onnx:
        return _insert_conversions(graph)
    return _insert_conversions(fuse_activation(_fuse_add(graph)))


def fuses_with_add(graph: Graph, convolution: Node, add: Node) -> bool:
    """Whether TNN's loader merges this int8 add into the convolution right before it."""
    attrs = convolution.attrs
    return (
        convolution.op == "convolution"
        and convolution.quant is not None
        and add.op == "add"
        and add.quant is not None
        and len(convolution.inputs) == 1
        and len(add.inputs) == 2
        and add.inputs[0] != add.inputs[1]
        and convolution.outputs[0] in add.inputs
        and graph.readers()[convolution.outputs[0]] == [add]
        and convolution.outputs[0] not in graph.outputs
        and (attrs.kernel_h, attrs.kernel_w, attrs.stride_h, attrs.stride_w) == (1, 1, 1, 1)
        and attrs.group == 1
        and not any(attrs.pads)
    )


def _fuse_add(graph: Graph) -> Graph:
    nodes: list[Node] = []
    for node in graph.nodes:
        before = nodes[-1] if nodes else None
        if before is not None and fuses_with_add(graph, before, node):
            other = [blob for blob in node.inputs if blob != before.outputs[0]]
            plain = before.attrs.activation == "none"
            attrs = replace(before.attrs, fusion="add_activation" if plain else "activation_add")
            nodes[-1] = replace(
                before, inputs=(*before.inputs, *other), outputs=node.outputs, attrs=attrs
            )
        else:
            nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _insert_conversions(graph: Graph) -> Graph:
    """Put `quantize` or `dequantize` behind each blob that a node of the other kind reads."""
    int8_blobs = {blob for node in graph.nodes if node.quant for blob in node.outputs}
    readers = graph.readers()
    renamed: dict[tuple[str, bool], str] = {}
    scales = dict(graph.scales)
    nodes: list[Node] = []

    def convert(blob: str, owner: str) -> None:
        is_int8 = blob in int8_blobs
        if all((reader.quant is not None) == is_int8 for reader in readers.get(blob, [])):
            return
        copy = blob + SUFFIX
        renamed[blob, not is_int8] = copy
        if blob in scales:
            scales[copy] = scales[blob]
        op = "dequantize" if is_int8 else "quantize"
        nodes.append(Node(owner + SUFFIX, op, (blob,), (copy,), NoAttrs()))

    for source in graph.inputs:
        kinds = {reader.quant is not None for reader in readers.get(source.name, [])}
        if kinds == {True}:
            int8_blobs.add(source.name)  # the executor quantizes the input itself
        else:
            convert(source.name, source.name)
    for node in graph.nodes:
        is_int8 = node.quant is not None
        inputs = tuple(renamed.get((blob, is_int8), blob) for blob in node.inputs)
        nodes.append(replace(node, inputs=inputs))
        several = len(node.outputs) > 1
        for blob in node.outputs:
            convert(blob, f"{node.name}:{blob}" if several else node.name)
    return replace(graph, nodes=tuple(nodes), scales=scales)

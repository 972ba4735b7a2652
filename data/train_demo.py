"""Train the demo network on rendered images and export it as ONNX and as TNN files.

Not part of the package: it needs the ``train`` extra (PyTorch) and takes a few minutes on one core.
Run ``python data/train_demo.py``; it writes ``demo.onnx``, ``demo.tnnproto``, ``demo.tnnmodel`` and
``demo.json`` beside itself.  The network is one of each block that quantizes in its own way: a fire
module (SqueezeNet), depthwise separable convolutions in two linear bottlenecks with a residual add
(MobileNetV2), max and average pooling, ReLU and ReLU6.
"""

import json
import time
from collections import OrderedDict

import make_images
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from quantjit import formats
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.concat import ConcatAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.pooling import PoolingAttrs

SEED = 20240
TRAIN_IMAGES, VALID_IMAGES = 20_000, 1_000
EPOCHS, BATCH, PEAK_RATE, WEIGHT_DECAY = 14, 64, 0.006, 1e-3
BIAS, SCALE = 127.5, 1 / 127.5
INPUT = "input"
INPUT_SHAPE = (1, 3, make_images.SIZE, make_images.SIZE)

# name, kind, inputs (names of earlier steps), settings; the blob that a step writes has its name
PLAN = (
    ("conv1", "conv", (INPUT,), {"out": 24, "kernel": 3, "stride": 2}),
    ("conv1/relu", "relu", ("conv1",), {}),
    ("fire2/squeeze1x1", "conv", ("conv1/relu",), {"out": 16, "kernel": 1}),
    ("fire2/squeeze1x1/relu", "relu", ("fire2/squeeze1x1",), {}),
    ("fire2/expand1x1", "conv", ("fire2/squeeze1x1/relu",), {"out": 32, "kernel": 1}),
    ("fire2/expand1x1/relu", "relu", ("fire2/expand1x1",), {}),
    ("fire2/expand3x3", "conv", ("fire2/squeeze1x1/relu",), {"out": 32, "kernel": 3}),
    ("fire2/expand3x3/relu", "relu", ("fire2/expand3x3",), {}),
    ("fire2/concat", "concat", ("fire2/expand1x1/relu", "fire2/expand3x3/relu"), {}),
    ("pool2", "max", ("fire2/concat",), {"kernel": 3, "stride": 2, "ceil": True}),
    ("block3/expand", "conv", ("pool2",), {"out": 128, "kernel": 1}),
    ("block3/expand/relu6", "relu6", ("block3/expand",), {}),
    ("block3/depthwise", "conv", ("block3/expand/relu6",), {"out": 128, "kernel": 3, "group": 128}),
    ("block3/depthwise/relu6", "relu6", ("block3/depthwise",), {}),
    ("block3/project", "conv", ("block3/depthwise/relu6",), {"out": 64, "kernel": 1}),
    ("block3/add", "add", ("pool2", "block3/project"), {}),
    ("pool3", "average", ("block3/add",), {"kernel": 2, "stride": 2}),
    ("block4/expand", "conv", ("pool3",), {"out": 192, "kernel": 1}),
    ("block4/expand/relu6", "relu6", ("block4/expand",), {}),
    ("block4/depthwise", "conv", ("block4/expand/relu6",), {"out": 192, "kernel": 3, "group": 192}),
    ("block4/depthwise/relu6", "relu6", ("block4/depthwise",), {}),
    ("block4/project", "conv", ("block4/depthwise/relu6",), {"out": 64, "kernel": 1}),
    ("block4/add", "add", ("pool3", "block4/project"), {}),
    ("conv5", "conv", ("block4/add",), {"out": 160, "kernel": 1}),
    ("conv5/relu", "relu", ("conv5",), {}),
    ("pool5", "global", ("conv5/relu",), {}),
    ("logits", "dense", ("pool5",), {"out": len(make_images.CLASSES)}),
)


def _count_channels():
    channels = {INPUT: INPUT_SHAPE[1]}
    for name, kind, inputs, settings in PLAN:
        if kind == "concat":
            channels[name] = sum(channels[blob] for blob in inputs)
        else:
            channels[name] = settings.get("out", channels[inputs[0]])
    return channels


CHANNELS = _count_channels()


class Network(nn.Module):
    """The plan with batch norm after every convolution."""

    def __init__(self):
        super().__init__()
        steps = OrderedDict()
        for name, kind, inputs, settings in PLAN:
            if kind == "conv":
                steps[name] = nn.Sequential(
                    nn.Conv2d(
                        CHANNELS[inputs[0]],
                        settings["out"],
                        settings["kernel"],
                        settings.get("stride", 1),
                        settings["kernel"] // 2,
                        groups=settings.get("group", 1),
                        bias=False,
                    ),
                    nn.BatchNorm2d(settings["out"]),
                )
            elif kind == "dense":
                steps[name] = nn.Linear(CHANNELS[inputs[0]], settings["out"])
            elif kind == "max":
                steps[name] = nn.MaxPool2d(
                    settings["kernel"], settings["stride"], ceil_mode=settings["ceil"]
                )
            elif kind == "average":
                steps[name] = nn.AvgPool2d(settings["kernel"], settings["stride"])
        self.steps = nn.ModuleDict({name.replace("/", "_"): step for name, step in steps.items()})

    def step(self, name):
        return self.steps[name.replace("/", "_")]

    def forward(self, x):
        blobs = {INPUT: x}
        for name, kind, inputs, _ in PLAN:
            values = [blobs[blob] for blob in inputs]
            if kind == "relu":
                blobs[name] = torch.relu(values[0])
            elif kind == "relu6":
                blobs[name] = nn.functional.relu6(values[0])
            elif kind == "concat":
                blobs[name] = torch.cat(values, 1)
            elif kind == "add":
                blobs[name] = values[0] + values[1]
            elif kind == "global":
                blobs[name] = values[0].mean((2, 3))
            else:
                blobs[name] = self.step(name)(values[0])
        return blobs["logits"]


def load_split(split, count):
    """Return images as stored in a JPEG file, uint8 (n, 3, SIZE, SIZE), and labels, int64 (n,)."""
    pairs = [make_images.render(split, index) for index in range(count)]
    images = [make_images.decode(make_images.encode(image)) for image, _ in pairs]
    labels = [label for _, label in pairs]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), torch.tensor(labels)


def normalize(images):
    return (images.float() - BIAS) * SCALE


def accuracy(network, images, labels):
    """Top-1 as a fraction."""
    network.eval()
    with torch.no_grad():
        answers = [network(normalize(part)).argmax(1) for part in images.split(250)]
    network.train()
    return float((torch.cat(answers) == labels).float().mean())


def train():
    """Return the trained network; the best epoch is not picked, the last one is taken."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    start = time.monotonic()
    images, labels = load_split("train", TRAIN_IMAGES)
    valid = load_split("valid", VALID_IMAGES)
    print(f"rendered in {time.monotonic() - start:.0f} s", flush=True)
    network = Network().to(memory_format=torch.channels_last)
    decay = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    )
    total = EPOCHS * (TRAIN_IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total, pct_start=0.25)
    for epoch in range(EPOCHS):
        losses = []
        for part in torch.randperm(TRAIN_IMAGES)[: total // EPOCHS * BATCH].split(BATCH):
            batch = images[part]
            if torch.rand(()) < 0.5:  # no shape has a handedness
                batch = batch.flip(3)
            batch = batch.contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(network(normalize(batch)), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, valid {accuracy(network, *valid):.3f},"
            f" {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return network.eval()


def fold(network):
    """Return {step: (weight, bias)} float32 with the batch norms folded into the convolutions."""
    folded = {}
    for name, kind, _, _ in PLAN:
        if kind == "conv":
            conv, norm = network.step(name)
            gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = conv.weight.double() * gain[:, None, None, None]
            bias = norm.bias.double() - norm.running_mean.double() * gain
            folded[name] = (weight, bias)
        elif kind == "dense":
            folded[name] = (network.step(name).weight, network.step(name).bias)
    return {
        name: tuple(value.detach().float().contiguous().numpy() for value in pair)
        for name, pair in folded.items()
    }


def to_onnx(folded):
    """Return the network as an ONNX model, opset 13."""
    nodes = []
    constants = {
        f"{name}/{role}": value
        for name, pair in folded.items()
        for role, value in zip(("weight", "bias"), pair, strict=True)
    }
    constants |= {"relu6/minimum": np.float32(0), "relu6/maximum": np.float32(6)}

    def emit(op, name, inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))

    for name, kind, inputs, settings in PLAN:
        if kind == "conv":
            kernel, stride = settings["kernel"], settings.get("stride", 1)
            emit(
                "Conv",
                name,
                [inputs[0], f"{name}/weight", f"{name}/bias"],
                kernel_shape=[kernel] * 2,
                strides=[stride] * 2,
                pads=[kernel // 2] * 4,
                group=settings.get("group", 1),
            )
        elif kind == "relu6":
            emit("Clip", name, [inputs[0], "relu6/minimum", "relu6/maximum"])
        elif kind == "concat":
            emit("Concat", name, inputs, axis=1)
        elif kind in {"max", "average"}:
            window = {
                "kernel_shape": [settings["kernel"]] * 2,
                "strides": [settings["stride"]] * 2,
                "ceil_mode": int(settings.get("ceil", False)),
            }
            emit("MaxPool" if kind == "max" else "AveragePool", name, inputs, **window)
        elif kind == "dense":
            emit("Flatten", f"{name}/flatten", inputs, axis=1)
            weights = [f"{name}/weight", f"{name}/bias"]
            emit("Gemm", name, [f"{name}/flatten", *weights], transB=1)
        else:
            op = {"relu": "Relu", "add": "Add", "global": "GlobalAveragePool"}[kind]
            emit(op, name, inputs)
    logits = (1, len(make_images.CLASSES))
    graph = helper.make_graph(
        nodes,
        "quantjit_demo",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, INPUT_SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=7,
        producer_name="quantjit data/train_demo.py",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def to_graph(folded):
    """Return the network as our own graph, activations as nodes of their own."""
    nodes = []
    for name, kind, inputs, settings in PLAN:
        weights = {}
        if kind == "conv":
            op, kernel, stride = "convolution", settings["kernel"], settings.get("stride", 1)
            attrs = ConvolutionAttrs(
                group=settings.get("group", 1),
                in_channels=CHANNELS[inputs[0]],
                out_channels=settings["out"],
                kernel_h=kernel,
                kernel_w=kernel,
                stride_h=stride,
                stride_w=stride,
                pads=(kernel // 2,) * 4,
            )
        elif kind == "dense":
            op, attrs = "inner_product", InnerProductAttrs(out_features=settings["out"])
        elif kind in {"max", "average", "global"}:
            op, kernel = "pooling", settings.get("kernel", 0)
            attrs = PoolingAttrs(
                kind="max" if kind == "max" else "average",
                kernel_h=kernel,
                kernel_w=kernel,
                stride_h=settings.get("stride", 1),
                stride_w=settings.get("stride", 1),
                ceil_mode=settings.get("ceil", False),
            )
        else:
            op = kind
            attrs = {"concat": ConcatAttrs(), "add": BinaryAttrs()}.get(kind, NoAttrs())
        if name in folded:
            weights = dict(zip(("weight", "bias"), folded[name], strict=True))
        nodes.append(Node(name, op, tuple(inputs), (name,), attrs, weights))
    graph = Graph(tuple(nodes), (Blob(INPUT, INPUT_SHAPE),), ("logits",))
    graph.validate()
    return graph


def export(network):
    """Write the three model files and the facts about them; return its top-1 on eval.npz."""
    here = make_images.HERE
    folded = fold(network)
    onnx.save(to_onnx(folded), here / "demo.onnx")
    formats.save(to_graph(folded), here / "demo.tnnproto")
    images, labels = make_images.load_eval(here / "eval.npz")
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    top1 = accuracy(network, pixels, torch.from_numpy(labels))
    facts = {
        "input": INPUT,
        "shape": INPUT_SHAPE,
        "output": "logits",
        "channel_order": "RGB",
        "bias": [BIAS] * 3,
        "scale": [round(SCALE, 9)] * 3,
        "classes": make_images.CLASSES,
        "eval_images": len(labels),
        "float_top1": round(top1, 4),
    }
    (here / "demo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="ascii")
    return top1


def main():
    print(f"top-1 on eval.npz: {export(train()):.4f}")


if __name__ == "__main__":
    main()

"""TNN files built byte by byte, independently of the writer under test."""

import struct

import numpy as np

V1, V2 = 0xFABC0002, 0xFABC0004
NUMBERS = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "int64": 5, "uint32": 6}


def integer(value):
    return struct.pack("<i", value)


def string(text):
    data = text.encode()
    return integer(len(data)) + data


def raw(values, dtype="float32", dims=(), version=V2):
    array = np.asarray(values, dtype)
    head = struct.pack("<Iii", version, NUMBERS[dtype], array.nbytes)
    if not array.nbytes:
        return head
    shape = struct.pack(f"<{len(dims) + 1}i", len(dims), *dims) if version == V2 else b""
    return head + shape + array.tobytes()


def entry(type_string, name, payload, number=0):
    return integer(number) + string(type_string) + string(name) + payload


def convolution(name, weight, bias=None, tail=b"", *, version=V2, number=1, dtype="float32"):
    """Weight and bias as nested arrays; dims are written for floats in v2."""
    weight = np.asarray(weight)
    floats = dtype != "int8"
    payload = string(name) + integer(int(bias is not None))
    payload += raw(weight, dtype, weight.shape if floats else (), version)
    if bias is not None:
        kind = dtype if floats else "int32"
        payload += raw(bias, kind, np.shape(bias) if floats else (), version)
    return entry("Convolution", name, payload + tail, number)


def blob_scale(blob, scale, zero_point=(0,)):
    payload = b""
    if zero_point is not None:
        payload += raw(zero_point, "int8")
    payload += raw(scale) + raw(np.zeros(len(scale)), "int32")
    return entry("BlobScale", f"{blob}_scale_data_", payload, 600)


def model(entries, magic=V2, constants=None, count=None):
    head = b"" if magic is None else struct.pack("<I", magic)
    data = head + integer(len(entries) if count is None else count) + b"".join(entries)
    if constants:
        data += struct.pack("<Ii", V2, len(constants))
        data += b"".join(string(name) + buffer for name, buffer in constants.items())
    return data


def proto(layers, inputs="data 4 1 3 4 4 0 ", outputs="out ", blobs="", magic=V2, count=None):
    records = [f"1 {len(blobs.split())} 1 {magic} ", inputs, f" {blobs}", outputs]
    records += [f" {len(layers) if count is None else count} ", *layers]
    return "".join(f'"{record},"\n' for record in records).encode()


def pair(folder, proto_bytes, model_bytes, name="net"):
    paths = (folder / f"{name}.tnnproto", folder / f"{name}.tnnmodel")
    for path, data in zip(paths, (proto_bytes, model_bytes), strict=True):
        path.write_bytes(data)
    return paths


WEIGHT = (np.arange(36, dtype=np.float32).reshape(2, 3, 3, 2)[..., :2] - 18) / 8
BIAS = np.array([0.5, -1.25], np.float32)
CONVOLUTION = "Convolution conv 1 1 data out 1 3 2 3 2 1 1 1 0 1 -1 1 1 0 "


def float_pair():
    """A convolution, a constant product, a PReLU, a reshape whose shape is a constant, an fc."""
    layers = [
        "Convolution conv 1 1 data conv 1 3 2 3 2 1 1 1 0 1 -1 1 1 1 ",
        "Mul mul 1 1 conv mul 1 ",
        "PReLU prelu 1 1 mul prelu 0 1 ",
        "Reshape flat 2 1 prelu shape flat 0 2 2 1 -1 0 ",
        "InnerProduct fc 1 1 flat out 3 1 0 1 ",
    ]
    names = "conv data flat mul out prelu shape "
    entries = [
        convolution("conv", WEIGHT, BIAS),
        entry("Mul", "mul", raw([2.0, 3.0], dims=(1, 2, 1, 1)), 42),
        entry("PReLU", "prelu", string("prelu") + raw([0.25, 0.5], dims=(2,)), 35),
        entry(
            "InnerProduct",
            "fc",
            string("fc") + raw(np.ones((3, 24)) / 4, dims=(3, 24)) + raw(np.zeros(3), dims=(3,)),
            19,
        ),
    ]
    constants = {"shape": raw([1, -1], "int32", (2,))}
    return proto(layers, blobs=names), model(entries, constants=constants)


def int8_pair():
    """An int8 convolution, relu, and product with itself, an fc without bias; blobs' scales."""
    layers = [
        "QuantizedConvolution conv 1 1 data conv 1 3 2 3 2 1 1 1 0 1 -1 1 1 0 ",
        "QuantizedReLU relu 1 1 conv relu ",
        "QuantizedAdd add 2 1 relu conv add -1 ",
        "QuantizedInnerProduct fc 1 1 add out 3 0 0 1 ",
    ]
    tail = raw([1, -2], "int8") + raw([0.5, 0.25])
    fc = string("fc") + raw(np.arange(72) - 36, "int8") + raw([]) + raw([0], "int8") + raw([0.125])
    entries = [
        blob_scale("data", [0.125]),
        convolution("conv", np.rint(WEIGHT * 8), [70, -5], tail, dtype="int8"),
        blob_scale("conv", [0.25, 0.0], [3, -4]),
        blob_scale("relu", [0.5]),
        blob_scale("add", [1.0]),
        entry("InnerProduct", "fc", fc, 19),
        blob_scale("out", [2.0]),
    ]
    return proto(layers, blobs="add conv data out relu "), model(entries)

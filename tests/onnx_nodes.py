"""The node tests that ship inside the ``onnx`` package, run through the reader and the executor.

``python tests/onnx_nodes.py`` prints how many pass for each operator, and why others are skipped.
"""

import re
import tempfile
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from quantjit import formats
from quantjit.executor import Executor

OPERATORS = [
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Relu", "LeakyRelu"),
    *("PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Gelu", "Elu"),
    *("Tanh", "Softmax", "LogSoftmax", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "Add"),
    *("Sub", "Mul", "Div", "Min", "Max", "Pow", "Concat", "Split", "Slice", "Gather"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Resize", "Upsample"),
    *("DepthToSpace", "LayerNormalization", "InstanceNormalization", "Shape", "Dropout"),
    *("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Constant", "ConstantOfShape"),
    *("Size", "GroupNormalization", "LRN", "SpaceToDepth", "Expand", "Tile", "Sum", "Mean"),
    *("Selu", "Celu", "Softsign", "ThresholdedRelu", "Less", "Greater", "LessOrEqual"),
    *("GreaterOrEqual", "Equal", "And", "Or", "Where", "ArgMax", "ArgMin", "Softplus", "Exp"),
    *("Erf", "Abs", "Neg", "Log", "Sqrt", "Floor", "Ceil", "Reciprocal", "Round", "Sign"),
    *("Sin", "Cos"),
]

_OF_BLOBS = {
    *("MatMul", "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Concat", "Sum", "Mean"),
    *(
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
        "Where",
        "And",
        "Or",
        "Equal",
    ),
}
"""Operators all of whose inputs are blobs; of the others, the first."""

_INTEGERS = "integer arithmetic: blobs are float"
_TRAINING = "training"
_PLANES = "three spatial axes"
_EMPTY = "blobs of no elements"
_NARROW = "blobs of 8-bit floats, or of 4 bits and fewer, that arrive from outside"

SKIPPED = {
    r"test_(add|sub|mul|div|max|min)_u?int\d+(_trunc)?": _INTEGERS,
    r"test_(less|greater)\w*_u?int\d+(_expanded)?": _INTEGERS,
    r"test_equal(_bcast|_string\w*|_u?int(32|64))?": _INTEGERS,
    r"test_where_long_example": _INTEGERS,
    r"test_clip_default_int8_\w+": _INTEGERS,
    r"test_pow_types_int\d+_\w+": _INTEGERS,
    r"test_(edge|reflect|wrap)_pad": _INTEGERS,
    r"test_reduce_(max|min)_(empty_set_)?bool\w*": _INTEGERS,
    r"test_cast_\w*(FLOAT8|FLOAT4|U?INT[24]|BFLOAT16)\w*": _NARROW,
    r"test_(de)?quantizelinear_(e\dm\d\w*|float4\w+)": _NARROW,
    r"test_dequantizelinear_u?int[24]": _NARROW,
    r"test_celu_bfloat16(_expanded)?": "it is computed in float32, not rounded to bfloat16",
    r"test_(de)?quantizelinear_blocked\w*": "a scale a block",
    r"test_(averagepool|maxpool|convtranspose)_3d\w*": _PLANES,
    r"test_(averagepool|maxpool)_2d_dilations": "dilated windows",
    r"test_maxpool_with_argmax_\w+": "indices of maxima",
    r"test_batchnorm_\w+_training_mode": _TRAINING,
    r"test_training_dropout(_default)?(_mask)?": _TRAINING,
    r"test_identity_(sequence|opt)": "sequences and optional values",
    r"test_reduce_\w+_empty_set\w*": _EMPTY,
    r"test_split_zero_size_splits_opset\d+": _EMPTY,
    r"test_reshape_allowzero_reordered": _EMPTY,
    r"test_slice_start_out_of_bounds": _EMPTY,
    r"test_resize_tf_crop_and_resize\w*": "crops",
    r"test_resize_\w+_antialias": "antialias",
    r"test_resize_downsample_scales_(linear|cubic)_align_corners": "whole pixels are aligned, as in"
    " onnxruntime and PyTorch",
}
"""Names of tests -> why they are not run."""


@cache
def cases():
    """All node tests of the operators above, by operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package computes its expectations here
        from onnx.backend.test.loader import load_model_tests

        loaded = load_model_tests(kind="node")
    found = {operator: [] for operator in OPERATORS}
    bodies = {}
    for case in loaded:
        if case.model is None:
            continue
        operator = case.model.graph.node[0].op_type
        if "_expanded" in case.name:
            bodies.setdefault(case.name.split("_expanded")[0], []).append(case)
        elif len(case.model.graph.node) == 1 and operator in found:
            found[operator].append(case)
    for listed in found.values():
        listed += [body for case in list(listed) for body in bodies.get(case.name, [])]
    return found


def why_skipped(case):
    """The reason for which a test is not run, "" if there is none."""
    return next((why for name, why in SKIPPED.items() if re.fullmatch(name, case.name)), "")


def _array(value):
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _is_blob(operator, index, array):
    if operator == "ConstantOfShape":
        return False
    if index and operator == "Pow":  # exponents of other types, and scalars, are parameters
        return array.dtype == np.float32 and array.ndim > 0
    return index == 0 or operator in _OF_BLOBS


def check(case, operator):
    """Run one test; AssertionError where a result is not as expected.

    What an operator takes as a parameter is fixed in the model; the other inputs are blobs.
    """
    for given, expected in case.data_sets:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        feeds = {}
        for index, (value, array) in enumerate(
            zip(model.graph.input, map(_array, given), strict=True)
        ):
            if _is_blob(operator, index, array):
                feeds[value.name] = array
            else:
                model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            graph = formats.load(path, shapes={name: x.shape for name, x in feeds.items()})
        found = Executor(graph).run(
            {blob.name: feeds[blob.name].astype(np.float32) for blob in graph.inputs}
        )
        for value, wanted in zip(model.graph.output, map(_array, expected), strict=True):
            assert found[value.name].shape == wanted.shape
            np.testing.assert_allclose(
                found[value.name], wanted.astype(np.float64), rtol=case.rtol, atol=case.atol
            )


def _table():
    total = Counter()
    for operator, listed in cases().items():
        skipped = Counter(filter(None, map(why_skipped, listed)))
        passed = 0
        for case in listed:
            if not why_skipped(case):
                check(case, operator)
                passed += 1
        total += Counter(passed=passed, all=len(listed))
        reasons = "; ".join(f"{count} {why}" for why, count in skipped.items())
        print(f"{operator:22} {passed:4} / {len(listed):<4} {reasons}")  # noqa: T201
    print(f"{'all':22} {total['passed']:4} / {total['all']}")  # noqa: T201


if __name__ == "__main__":
    _table()

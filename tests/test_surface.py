"""The stable surface: its names, their signatures and what they say of themselves."""

import inspect
import re
from pathlib import Path

import pytest

import quantjit
from quantjit import api, errors, whole

SIGNATURES = {
    "analyze": "(reference, quantized, data, *, preprocess=None, images=8, jobs=None, "
    "on_progress=)",
    "calibrate": "(graph, data, settings=None, *, preprocess=None, jobs=None, batch=None, "
    "memory=None, nonfinite='fail', on_progress=, on_snapshot=None)",
    "input_shapes": "(graph)",
    "load": "(path, weights=None, shapes=None, *, target=None)",
    "quantize": "(graph, table, settings=None)",
    "quantize_model": "(model, data, output=None, settings=None, *, preprocess=None, "
    "evaluation=None, labels=None, verify_inputs=None, nonfinite='fail', jobs=None, batch=None, "
    "memory=None, on_progress=)",
    "report": "(folder, result, settings=None, *, title='', class_names=())",
    "run": "(proto, model, input_path, settings, *, inputs=None, output=, labels=None, "
    "verify_inputs=16, nonfinite='fail', jobs=None, batch=None, memory=None, statistics=None, "
    "until_stable=False, on_progress=, shapes=None, form='qdq', float_fallback=True, detail=False, "
    "target=None, cluster=None)",
    "save": "(graph, path, weights=None, **options)",
    "solve": "(graph, stats, settings=None)",
    "tune": "(model, data, output=None, settings=None, *, preprocess=None, held_out=None, "
    "labels=None, min_sqnr=None, max_drop=None, passes=('equalize', 'bias', 'rounding'), "
    "nonfinite='fail', jobs=None, batch=None, memory=None, on_progress=)",
    "verify": "(reference, quantized, data, *, preprocess=None, labels=None, why_float=None, "
    "jobs=None, on_progress=, detail=False)",
}
CLASSES = {
    "ArraySamples": "(arrays)",
    "BlobStats": "(channels, bins=4096)",
    "Calibration": None,
    "CalibrationTable": None,
    "Comparison": None,
    "Dataset": None,
    "Executor": None,
    "Graph": None,
    "Node": None,
    "Preprocess": "(bias=(0.0,), scale=(1.0,), channel_order='rgb', resize='stretch', "
    "resize_shorter=None)",
    "QuantJitError": None,
    "QuantParams": "(scale, zero_point=0)",
    "Quantization": None,
    "Settings": "(blob_method='', weight_method='', merge='mix', compat=False, float_nodes=(), "
    "target='tnn', symmetric=False, exclude=(), activations='uint8', passes=())",
}
"""Signature of the constructor where programs call it."""


def plain(function):
    """The signature without annotations, and without defaults that are no literals."""
    words = []
    starred = False
    for item in inspect.signature(function).parameters.values():
        if item.kind is item.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        text = {item.VAR_KEYWORD: "**", item.VAR_POSITIONAL: "*"}.get(item.kind, "") + item.name
        if item.default is not item.empty:
            default = item.default
            is_plain = default is None or isinstance(default, bool | int | str | float | tuple)
            text += f"={default!r}" if is_plain else "="
        words.append(text)
    return f"({', '.join(words)})"


def test_the_stable_surface_is_pinned():
    names = {*SIGNATURES, *CLASSES, "__version__", "explore"}
    assert set(quantjit.__all__) == names
    for name, expected in SIGNATURES.items():
        assert plain(getattr(quantjit, name)) == expected, name
    for name, expected in CLASSES.items():
        assert expected is None or plain(getattr(quantjit, name)) == expected, name


def test_no_module_hides_a_function():
    """`import quantjit.x` would put the module in the place of the function."""
    folder = Path(quantjit.__file__).parent
    for name in (*SIGNATURES, *CLASSES):
        assert not (folder / f"{name}.py").exists(), name
        assert not (folder / name).exists(), name


def sections(function):
    """Section -> lines of a numpydoc docstring."""
    parts = re.split(r"\n(\w+)\n-{3,}\n", inspect.getdoc(function))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_functions_say_what_they_take_give_and_raise(name):
    function = getattr(quantjit, name)
    found = sections(function)
    described = re.findall(r"^(\w+(?:, \w+)*) : .+$", found["Parameters"], re.MULTILINE)
    assert ", ".join(described).split(", ") == list(inspect.signature(function).parameters)
    assert found["Returns"].strip()
    raised = re.findall(r"^(\w+)$", found.get("Raises", ""), re.MULTILINE)
    assert raised or name == "input_shapes"
    for error in raised:
        assert issubclass(getattr(errors, error, OSError), Exception)
        assert hasattr(errors, error) or error == "OSError", error
    for parameter in (
        "data",
        "shapes",
        "evaluation",
        "held_out",
    ):  # these hold arrays or their shapes
        lines = re.search(rf"^{parameter} : (.+(?:\n    .+)*)", found["Parameters"], re.MULTILINE)
        assert lines is None or "C, H, W)" in lines[1], parameter
        assert lines is None or parameter == "shapes" or "float32" in lines[1], parameter


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_classes_and_what_they_offer_have_docstrings(name):
    kind = getattr(quantjit, name)
    assert not inspect.getdoc(kind).startswith(f"{name}("), "written by dataclass"
    for member, item in vars(kind).items():
        if member.startswith("_") or not (inspect.isfunction(item) or isinstance(item, property)):
            continue
        text = inspect.getdoc(item)
        assert text, f"{name}.{member}"
        function = item.fget if isinstance(item, property) else item
        if "NDArray" in str(inspect.signature(function).return_annotation):
            assert re.search(r"(float|u?int)\d+ \(", text), f"{name}.{member}: dtype and shape"


def test_the_errors_are_described():
    for name, item in vars(errors).items():
        if inspect.isclass(item) and issubclass(item, errors.QuantJitError):
            assert inspect.getdoc(item), name
            assert isinstance(item.exit_code, int)


def test_the_package_is_typed():
    assert (Path(quantjit.__file__).parent / "py.typed").is_file()
    for name in SIGNATURES:
        function = getattr(quantjit, name)
        hints = inspect.signature(function)
        assert hints.return_annotation is not inspect.Signature.empty, name
        for item in hints.parameters.values():
            assert item.annotation is not item.empty, f"{name}: {item.name}"


def test_the_facade_is_the_package():
    for module in (api, whole):
        for name in module.__all__:
            assert getattr(quantjit, name) is getattr(module, name)

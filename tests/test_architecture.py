"""Contracts that hold for every member of a registry, and for the tree."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

import quantjit
from quantjit import formats, ops
from quantjit.graph import Graph
from quantjit.solvers import BlobSolver, WeightSolver, blob_solvers, weight_solvers

ROOT = Path(quantjit.__file__).parent
BANNED = {"utils", "util", "core", "common", "helpers", "base", "misc"}


def modules():
    return sorted(ROOT.rglob("*.py"))


def test_the_public_names_are_pinned_and_there():
    assert quantjit.__all__ == sorted(quantjit.__all__, key=lambda name: (name == "_", name))
    assert dir(quantjit) == sorted(quantjit.__all__)
    for name in quantjit.__all__:
        item = getattr(quantjit, name)
        assert name == "__version__" or inspect.getdoc(item), name
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = quantjit.quantise


@pytest.mark.parametrize("name", ops.registry())
def test_ops(name):
    op = ops.get(name)
    assert op.name == name
    assert dataclasses.is_dataclass(op.attrs)
    assert op.attrs.__dataclass_params__.frozen
    assert op.attrs.__doc__


@pytest.mark.parametrize("registry", [blob_solvers(), weight_solvers()])
def test_solvers(registry):
    numbers = [solver.number for solver in registry.values() if solver.number is not None]
    assert len(numbers) == len(set(numbers))
    for name, solver in registry.items():
        assert solver.name == name
        assert isinstance(solver, BlobSolver | WeightSolver)
        assert solver.summary


def test_the_originals_methods_have_its_numbers():
    blob = {"minmax": 0, "kl": 2, "asymmetric": 3, "aciq-gauss": 4, "aciq-laplace": 5}
    weight = {"minmax": 0, "admm": 1, "asymmetric": 3}
    assert {name: blob_solvers()[name].number for name in blob} == blob
    assert {name: weight_solvers()[name].number for name in weight} == weight


def test_formats():
    suffixes = [s for item in formats.registry().values() for s in item.suffixes]
    assert len(suffixes) == len(set(suffixes))


def test_no_drawers_and_a_docstring_each():
    for path in modules():
        assert path.stem not in BANNED
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_kernels_are_compiled_in_one_way():
    for path in (ROOT / "kernels").glob("*.py"):
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for item in tree.body:
            if isinstance(item, ast.FunctionDef):
                names = {ast.unparse(decorator) for decorator in item.decorator_list}
                assert names <= {"kernel", "parallel_kernel", "cache"}, f"{path.name}: {item.name}"
                assert item.name.startswith("_") or ast.get_docstring(item), item.name
        called = {ast.unparse(item.func) for item in ast.walk(tree) if isinstance(item, ast.Call)}
        assert not called & {"njit", "numba.njit", "numba.jit", "jit"}, path.name


def test_types_are_frozen():
    for name in ("Graph", "Node", "QuantParams", "CalibrationTable", "Settings", "Preprocess"):
        assert getattr(quantjit, name).__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        Graph((), (), ()).nodes = ()

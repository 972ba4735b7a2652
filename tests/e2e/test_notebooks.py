"""The notebooks run from a fresh clone, and hold no outputs in git."""

import ast
import base64
import json
from pathlib import Path

import pytest

import quantjit
from quantjit import explore

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
PICTURES = {"1_quantize": 2, "2_scales": 3, "3_repair": 5}

names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three():
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)


@names
def test_outputs_are_stripped(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert path.stat().st_size < 20_000


@names
def test_only_public_names_are_used(path):
    for source in code(path):
        for item in ast.walk(ast.parse(source)):
            if isinstance(item, ast.ImportFrom) and (item.module or "").startswith("quantjit"):
                assert item.module == "quantjit"
                assert {each.name for each in item.names} <= set(quantjit.__all__)
            if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name):
                known = {"quantjit": quantjit.__all__, "explore": explore.__all__}
                assert item.attr in known.get(item.value.id, [item.attr]), item.attr
                assert not item.attr.startswith("_")


def run(path, first, *, only=slice(None)):
    """Run `first` and the cells of a notebook in a kernel of its own, and return their outputs."""
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if cell["cell_type"] == "code"]
    book.cells = [nbformat.v4.new_code_cell(first), *cells[only]]
    client.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    return [out for cell in book.cells for out in cell.outputs]


@names
@pytest.mark.jit
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
def test_it_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    root = str(path.parents[1])
    # without ipywidgets, where a plain plot takes the place of the sliders
    hide = f"import sys; sys.modules['ipywidgets'] = None; sys.path.insert(0, {root!r})"
    outputs = run(path, hide)
    assert not [out for out in outputs if out.output_type == "error"]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    pictures = [
        base64.b64decode(out.data["image/png"])
        for out in outputs
        if "image/png" in out.get("data", {})
    ]
    assert len(pictures) >= PICTURES[path.stem]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{path.stem}_{number}.png").write_bytes(picture)
        assert len(picture) > 5000
    if path.stem == "3_repair":
        text = "".join(out.get("text", "") for out in outputs)
        assert "block4/depthwise loses" in text


@pytest.mark.jit
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_sliders_are_there_where_ipywidgets_is(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    path = next(path for path in NOTEBOOKS if path.stem == "2_scales")
    first = f"import sys; sys.path.insert(0, {str(path.parents[1])!r})"
    ends = slice(None, None, len(code(path)) - 1)  # what it begins with, and the sliders
    outputs = run(path, first, only=ends)
    widget = "application/vnd.jupyter.widget-view+json"
    assert any(widget in out.get("data", {}) for out in outputs)
    assert not [out for out in outputs if out.output_type == "error"]

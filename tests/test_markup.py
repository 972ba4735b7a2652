"""How results look in a terminal and in a notebook."""

from html.parser import HTMLParser

import models
import numpy as np
import pytest

import quantjit
from quantjit import markup
from quantjit.dataset import ArraySamples
from quantjit.passes.fuse_activation import fuse_activation


class Cells(HTMLParser):
    """Rows of cells of a page whose tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.rows, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data


def test_a_table_is_escaped_and_short():
    text = markup.table("<b>&", ("a", "b", "c"), [("<script>", 1234567, 0.1234567)])
    assert "<script>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert Cells(text).rows == [["a", "b", "c"], ["<script>", "1,234,567", "0.12346"]]
    assert Cells(markup.table("", ("x", "y"), [(None, True), ("", False)])).rows[1:] == [
        ["", "yes"],
        ["", ""],
    ]
    long = Cells(markup.table("many", ("n",), ((place,) for place in range(100)))).rows
    assert len(long) == 62
    assert long[-1] == ["... and 40 more"]


@pytest.fixture(scope="module")
def result():
    graph = fuse_activation(models.small_network(8))
    images = np.concatenate([each["data"] for each in models.random_inputs(graph, 4)])
    return quantjit.quantize_model(graph, images)


@pytest.mark.jit
def test_a_line_each(result):
    graph, int8 = result.graph, result.quantized
    lines = {
        repr(graph): f"Graph({len(graph.nodes)} nodes, data 1x3x8x8 -> scores, float)",
        repr(graph.nodes[0]): "Node('conv1', convolution, data -> relu1, weight 4x3x3x3 float32, "
        "bias 4 float32)",
        repr(int8.nodes[0]): "Node('conv1', convolution, data -> relu1, weight 4x3x3x3 int8, "
        "bias 4 int32, int8)",
        repr(ArraySamples([])): "ArraySamples(0 inputs)",
        repr(quantjit.QuantParams(0.5)): "QuantParams(0.5)",
        repr(quantjit.QuantParams(0.5, -3)): "QuantParams(0.5, -3)",
        repr(quantjit.QuantParams([0.25, 0.5])): "QuantParams(2 scales from 0.25 to 0.5)",
    }
    for found, expected in lines.items():
        assert found == expected
    assert repr(int8).endswith("11 nodes, data 1x3x8x8 -> scores, 10 int8, tnn)")
    assert repr(result.table).startswith("CalibrationTable(12 blobs, 1 nodes float, blobs mse")
    assert repr(result.calibration).startswith("Calibration(4 inputs, 12 blobs")
    assert repr(result.comparison).startswith("Comparison(4 inputs, SQNR ")
    assert repr(result.convergence).startswith("Convergence(")
    assert repr(result).startswith("Quantization(not written; blobs mse, weights mse, mix; Compar")
    assert max(len(repr(item)) for item in (graph, result, result.table)) < 200


@pytest.mark.jit
def test_a_table_each(result):
    rows = Cells(result.graph._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == [node.name for node in result.graph.nodes]
    rows = Cells(result.table._repr_html_()).rows
    assert {"relu1", "data"} <= {row[0] for row in rows}
    assert rows[-1][0] == "mean"
    rows = Cells(result.calibration._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == list(result.calibration.stats)
    rows = Cells(result.comparison._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == [node.name for node in result.comparison.nodes]
    rows = dict(row for row in Cells(result._repr_html_()).rows if len(row) == 2)
    assert rows["settings"] == "blobs mse, weights mse, mix"
    assert rows["written"] == "nothing"


@pytest.mark.jit
def test_names_of_a_file_are_no_markup(result):
    import dataclasses

    name = "<img src=x onerror=alert(1)>"
    node = dataclasses.replace(result.graph.nodes[0], name=name)
    graph = result.graph.with_nodes((node,))
    assert "<img" not in graph._repr_html_()
    assert Cells(graph._repr_html_()).rows[1][0] == name


@pytest.mark.jit
def test_searches_show_what_they_found(result):
    images = np.concatenate([each["data"] for each in models.random_inputs(result.graph, 6)])
    tuned = quantjit.tune(result.graph, images, passes=())
    assert repr(tuned).startswith(f"Tuned({tuned.settings}: ")
    assert len(repr(tuned)) < 120
    names = {row[0] for row in Cells(tuned._repr_html_()).rows}
    assert {"mse", "kl", "settings"} <= names
    found = quantjit.analyze(result.graph, result.quantized, images)
    assert repr(found) == f"Sensitivity(10 int8 nodes on 6 inputs, worst {found.nodes[0].name})"
    rows = Cells(found._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == [node.name for node in found.nodes]

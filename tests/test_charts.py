"""Charts are well-formed XML, have a mark for each value, and stay inside their box."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit import charts

SVG = "{http://www.w3.org/2000/svg}"
LIMITS = (25.0, 15.0)
finite = st.floats(-250, 250)


def parsed(svg):
    """The chart, after looking that everything with a number lies in its box."""
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    _, _, width, height = map(float, root.get("viewBox").split())
    for item in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            if item.get(name):
                assert -1 <= float(item.get(name)) <= width + 1, (item.tag, item.attrib)
        for name in ("y", "y1", "y2", "cy"):
            if item.get(name):
                assert -1 <= float(item.get(name)) <= height + 1, (item.tag, item.attrib)
        for name in ("d", "points"):
            assert "nan" not in item.get(name, "")
            assert "inf" not in item.get(name, "")
    return root


def marks(root):
    found = [item for item in root.iter() if "mark" in item.get("class", "").split()]
    for item in found:
        assert item.find(f"{SVG}title") is not None
        assert item.find(f"{SVG}title").text
    return found


def words(root):
    return [item.text for item in root.iter(f"{SVG}text")]


@given(
    st.lists(
        st.builds(
            charts.LayerError,
            st.text("abc<&\"'/_", min_size=1, max_size=70),
            st.sampled_from(["convolution", "add"]),
            st.booleans(),
            finite,
            st.floats(0, 1e6),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_error_plots_have_a_mark_a_layer(layers):
    wide = parsed(charts.error_columns(layers, LIMITS, [layer.name for layer in layers[:7]]))
    assert len(marks(wide)) == 2 * len(layers)
    narrow = parsed(charts.error_rows(layers, LIMITS))
    assert len(marks(narrow)) == len(layers)


def test_error_plots_name_the_worst_and_grade_all():
    sqnr = (40.0, 20.0, 10.0, 30.0)
    layers = [
        charts.LayerError(f"layer{i}", "convolution", i < 3, value, 0.01 * i)
        for i, value in enumerate(sqnr)
    ]
    root = parsed(charts.error_columns(layers, LIMITS, ["layer2"]))
    kinds = [item.get("class") for item in marks(root) if item.tag == f"{SVG}circle"]
    assert kinds == ["mark good", "mark fair", "mark poor", "mark float"]
    assert "layer2 +2.0%" in words(root)
    heights = [float(item.get("cy")) for item in root.iter(f"{SVG}circle")]
    assert heights[0] < heights[3] < heights[1] < heights[2]
    assert {"layer0", "40.0 dB"} <= set(words(parsed(charts.error_rows(layers, LIMITS))))


@given(
    st.lists(st.floats(0, 1e12), min_size=2, max_size=64),
    st.floats(1e-6, 1e6),
    st.lists(st.floats(0, 4), max_size=9),
)
def test_histograms_have_a_mark_a_bin_and_method(counts, largest, kept):
    edges = [largest * i / len(counts) for i in range(len(counts) + 1)]
    choices = [
        charts.Choice(f"method {i}", share * largest, 0.1 * i, i == 0)
        for i, share in enumerate(kept)
    ]
    root = parsed(charts.histogram("b", edges, counts, choices))
    assert len(marks(root)) == sum(count > 0 for count in counts) + len(choices)
    assert sum("clipped" in text for text in words(root)) == len(choices)


def test_histograms_are_logarithmic():
    root = parsed(charts.histogram("b", [0, 1, 2, 3], [10, 100, 1000], []))
    tall = [float(item.get("height")) for item in marks(root)]
    assert tall[1] / tall[0] == pytest.approx(2, rel=1e-2)
    assert tall[2] / tall[0] == pytest.approx(3, rel=1e-2)
    assert {"1", "1e3"} <= set(words(root))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300))
def test_channels_are_all_drawn(shares):
    root = parsed(charts.channels("range", shares, "the range"))
    ends = re.findall(r"M[-\d.e]+ [-\d.e]+[Vv]", "".join(m.get("d", "") for m in marks(root)))
    assert len(ends) == len(shares)
    assert "1/256" in words(root)


def test_channels_that_hog_the_range_stand_out():
    shares = [0.01] * 99 + [1.0]
    root = parsed(charts.channels("range", shares, "the range", [f"c{i}" for i in range(100)]))
    hogs = [item for item in marks(root) if "hog" in item.get("class")]
    assert len(hogs) == 1
    assert hogs[0].find(f"{SVG}title").text == "c99: 1 of the range"
    dead = parsed(charts.channels("range", [1.0, 0.0, 0.0], "the range"))
    titles = [item.find(f"{SVG}title").text for item in marks(dead)]
    assert "2 dead channels: 1, 2" in titles


@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=12, unique=True).map(sorted),
    st.integers(1, 6),
    st.data(),
)
def test_convergence_has_a_line_a_blob(inputs, blobs, data):
    scales = {
        f"blob{i}": data.draw(
            st.lists(st.floats(0, 1e3), min_size=len(inputs), max_size=len(inputs))
        )
        for i in range(blobs)
    }
    root = parsed(charts.convergence(inputs, scales, ["blob0", "no such"]))
    assert len(marks(root)) == blobs
    assert "blob0" in words(root)
    assert str(inputs[-1]) in words(root)


def test_names_are_shortened_in_the_middle():
    assert charts.shorten("short", 10) == "short"
    short = charts.shorten("a_very_long_name_of_a_layer", 12)
    assert len(short) == 12
    assert short.startswith("a_ver")
    assert short.endswith("layer")
    assert charts.number(0.000123456) == "0.000123"

"""The report as a folder: what is in it, and that it is the same bytes for the same result."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image

from quantjit import formats, page, pipeline, sections, verdict
from quantjit.errors import DataError, UsageError
from quantjit.images import Preprocess
from quantjit.page import Source
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings
from quantjit.refine import Effect

pytestmark = pytest.mark.jit

VOID = {"meta", "img", "br", "wbr", "input", "line", "circle", "rect", "path", "polyline"}
SETTINGS = Settings("mse", "mse", "mix")


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open; gathers attributes that load things."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.loads += [found[name] for name in ("src", "srcset", "data") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "link":
            self.loads.append(str(found))
        if "href" in found:
            self.links.append(found["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network with awkward names, and images."""
    root = tmp_path_factory.mktemp("page")
    formats.save(models.small_network(size=12), root / "net.tnnproto")
    (root / "images").mkdir()
    rng = np.random.default_rng(1)
    for index in range(5):
        pixels = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}<&>.png")
    return root


def made(place, tmp_path, jobs=1, **options):
    inputs = Inputs(Preprocess((127.0,), (1 / 64,)))
    result = pipeline.run(
        place / "net.tnnproto", None, place / "images", SETTINGS, inputs=inputs,
        output=tmp_path / "net_quantized.tnnproto", jobs=jobs, detail=True, **options,
    )  # fmt: skip
    names = tuple(f"name <{i}>" for i in range(5))
    source = Source("a <b> & c", (place / "net.tnnproto",), place / "images", inputs, None, names)
    return result, source


def test_the_folder_has_a_page_and_its_tables(place, tmp_path):
    result, source = made(place, tmp_path)
    paths = page.write(tmp_path / "report", result, SETTINGS, source=source)
    assert paths[0] == tmp_path / "report" / "report.html"
    assert {path.name for path in paths} == {item.name for item in paths[0].parent.iterdir()}
    for path in paths[1:]:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            assert frame.height > 0
            csv = pl.read_csv(path.with_suffix(".csv"), infer_schema_length=None)
            assert csv.columns == frame.columns
            assert csv.height == frame.height
    text = paths[0].read_text(encoding="utf-8")
    found = Balanced()
    found.feed(text)
    assert found.open == []
    assert all(item.startswith("data:image/jpeg;base64,") for item in found.loads)
    assert len(found.loads) == 5, "a thumbnail for each image"
    assert len(found.ids) == len(set(found.ids))
    assert all(link[1:] in found.ids for link in found.links), "no link leads away"
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    for word in ("a &lt;b&gt; &amp; c", "name &lt;", "0&lt;&amp;&gt;.png", "depthwise", "sha256"):
        assert word in text
    assert "<button" not in text
    assert "<input" not in text, "controls are made by the script that serves them"
    for answer in verdict.answers(result.comparison, SETTINGS, 5, result.convergence):
        assert answer.question in text
        assert sections.breakable(answer.text) in text


def test_threads_do_not_change_a_byte(place, tmp_path):
    folders = []
    for jobs in (1, 3):
        result, source = made(place, tmp_path, jobs)
        folders.append(tmp_path / f"jobs {jobs}")
        page.write(folders[-1], result, SETTINGS, source=source)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name


def test_an_old_report_is_replaced_whole(place, tmp_path):
    result, source = made(place, tmp_path)
    folder = tmp_path / "report"
    candidates = pl.DataFrame(
        {
            "blob_method": ["kl", "mse"],
            "sqnr_db": [30.125, None],
            "images": [1, 2],
            "original_default": [True, False],
            "seconds": [0.123456, 2.0],
        }
    )
    page.write(folder, result, SETTINGS, source=source, candidates=candidates)
    text = (folder / "report.html").read_text(encoding="utf-8")
    for word in ("Candidates", "blob method", "30.12", "yes"):
        assert word in text
    assert "0.1235" not in text, "no time of a run goes into the page"
    assert pl.read_csv(folder / "candidates.csv").equals(candidates)
    (folder / "mine.txt").write_text("kept")
    page.write(folder, result, None)
    assert not list(folder.glob("candidates*"))
    assert (folder / "mine.txt").read_text() == "kept"
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Blob method" not in text
    assert "net_quantized" in text


def test_passes_and_what_was_not_compared(place, tmp_path):
    result, _ = made(place, tmp_path, verify_inputs=0)
    result = replace(result, effects=(Effect("bias", False, 20.0, 19.5, "made it worse"),))
    page.write(tmp_path / "report", result, SETTINGS)
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "made it worse" in text
    assert "not kept" in text
    assert "Nothing was compared" in text
    assert 'id="inputs"' not in text


def test_places_that_cannot_hold_a_report(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        page.check(tmp_path / "file")
    with pytest.raises(UsageError, match="no such folder"):
        page.check(tmp_path / "no" / "where")
    page.check(tmp_path)
    with pytest.raises(DataError, match="class names"):
        page.read_class_names(tmp_path / "none.txt")
    (tmp_path / "names.txt").write_text("disc\nstar\n")
    assert page.read_class_names(tmp_path / "names.txt") == ("disc", "star")


def test_names_break_behind_separators():
    assert sections.breakable("a/b_c<") == "a/<wbr>b_<wbr>c&lt;"
    assert sections.breakable("23.5 dB") == "23.5 dB"

"""The page in Chromium, as a person has it: on a screen and on a phone, by day and by night.

Skipped where there is no Chromium with its driver, or no Selenium.
"""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image

from quantjit import formats, page, pipeline
from quantjit.images import Preprocess
from quantjit.page import Source
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings
from quantjit.refine import Effect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
LIBRARIES = ("selenium", "axe_core_python")

pytestmark = [
    pytest.mark.jit,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver here"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, LIBRARIES)), reason=f"needs {', '.join(LIBRARIES)}"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets of the driver
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage",
)  # fmt: skip
VIEWS = [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")]


def network():
    """A network with long names, as exporters make them."""
    prefix = "MobilenetV2/expanded_conv_15/depthwise/BatchNorm/FusedBatchNormV3_"
    graph = models.small_network(size=12)

    def renamed(names):
        return tuple(name if name in {"data", "scores"} else prefix + name for name in names)

    return graph.with_nodes(
        tuple(
            replace(
                node,
                name=prefix + node.name,
                inputs=renamed(node.inputs),
                outputs=renamed(node.outputs),
            )
            for node in graph.nodes
        )
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The path of a report with everything in it."""
    root = tmp_path_factory.mktemp("browser")
    formats.save(network(), root / "net.onnx")
    (root / "images").mkdir()
    rng = np.random.default_rng(3)
    for index in range(40):
        pixels = rng.integers(0, 256, (12, 20, 3)) // (1 + index % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{index:02}.png")
    settings = Settings("mse", "mse", "mix", target="onnx")
    inputs = Inputs(Preprocess((127.0,), (1 / 64,)))
    labels = "\n".join(f"{index:02}.png,{index % 5}" for index in range(40))
    (root / "labels.csv").write_text(labels)
    result = pipeline.run(
        root / "net.onnx", None, root / "images", settings, inputs=inputs,
        output=root / "net_quantized.onnx", labels=root / "labels.csv", jobs=1, detail=True,
    )  # fmt: skip
    result = replace(
        result,
        effects=(Effect("bias", True, 20.0, 21.5, "3 layers"),),
        notes=("a note about what the format says otherwise",),
        skipped=("broken.jpg: cannot be decoded",),
    )
    names = tuple(f"an animal with a long name, {index}" for index in range(5))
    candidates = pl.DataFrame(
        {"settings": ["blobs kl, weights admm", "blobs mse"], "sqnr": [9.5, None], "images": [7, 8]}
    )
    source = Source("net", (root / "net.onnx",), root / "images", inputs, None, names)
    paths = page.write(root / "report", result, settings, source=source, candidates=candidates)
    return paths[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def opened(request, browser, report):
    """The page in one of the views, with everything unfolded."""
    width, scheme = request.param
    show(browser, report, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    return browser


def show(browser, report, width=1400, scheme="light"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    view = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    browser.get(report.as_uri())


def test_nothing_is_loaded_and_nothing_complains(opened):
    assert opened.get_log("browser") == []
    loaded = opened.execute_script(
        "return performance.getEntriesByType('resource').map(each => each.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []
    broken = "return [...document.images].filter(each => !each.naturalWidth).length"
    assert opened.execute_script(broken) == 0
    assert opened.execute_script("return document.images.length") == 8


def test_every_plot_has_its_marks(opened):
    plots = opened.execute_script(
        """return [...document.querySelectorAll('svg.chart')]
        .filter(plot => getComputedStyle(plot).display !== 'none')
        .map(plot => {
            const marks = [...plot.querySelectorAll('.mark')];
            const seen = marks.filter(mark => {
                const style = getComputedStyle(mark), box = mark.getBBox();
                const paint = style.fill !== 'none' || style.stroke !== 'none';
                return paint && (box.width > 0 || box.height > 0);
            });
            return [plot.getAttribute('aria-label'), marks.length, seen.length,
                    marks.filter(mark => !mark.querySelector('title')).length,
                    plot.querySelectorAll('text').length];
        })"""
    )
    assert len(plots) > 25
    for label, marks, seen, untitled, texts in plots:
        assert marks > 0, label
        assert seen >= 0.5 * marks, label  # a bar of nothing has no box
        assert untitled == 0, label
        assert texts > 1, label


def test_nothing_overflows(opened):
    width, inside = opened.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width <= inside
    wide = opened.execute_script(
        """return [...document.querySelectorAll('body *')]
        .filter(each => !each.closest('svg') && !each.classList.contains('scroll'))
        .filter(each => each.clientWidth && each.scrollWidth > each.clientWidth + 1)
        .map(each => [each.tagName, each.className, each.textContent.slice(0, 60)])"""
    )
    assert wide == []
    outside = opened.execute_script(
        """return [...document.querySelectorAll('svg.chart')].flatMap(plot => {
            const box = plot.viewBox.baseVal;
            return [...plot.querySelectorAll('text')].filter(text => {
                if (!text.getBoundingClientRect().width) return false;
                const t = text.getBBox();
                return t.x < -2 || t.x + t.width > box.width + 2 || t.y < -2
                    || t.y + t.height > box.height + 3;
            }).map(text => [plot.getAttribute('aria-label'), text.textContent]);
        })"""
    )
    assert outside == []
    small = opened.execute_script(
        """return [...document.querySelectorAll('svg.chart text')]
        .map(text => text.getBoundingClientRect().height).filter(tall => tall && tall < 9).length"""
    )
    assert small == 0


def test_axe_finds_no_serious_issue(opened):
    axe = Path(importlib.util.find_spec("axe_core_python").origin).with_name("axe.min.js")
    opened.execute_script(axe.read_text(encoding="utf-8"))
    found = opened.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations))"
    )
    told = [
        (
            each["id"],
            each["impact"],
            each["help"],
            [node["html"][:160] for node in each["nodes"][:3]],
        )
        for each in found
        if each["impact"] in {"serious", "critical", "moderate"}
    ]
    assert told == []


def test_tables_are_sorted_and_filtered(browser, report):
    from selenium.webdriver.common.keys import Keys

    show(browser, report)
    table = browser.find_element("css selector", "#layers table.sortable")
    column = [head.text for head in table.find_elements("css selector", "thead th")]
    place = next(index for index, text in enumerate(column) if text.startswith("MACs"))
    head = table.find_elements("css selector", "thead th")[place]
    button = head.find_element("css selector", "button")

    def shown():
        cells = f"tbody tr:not([hidden]) > :nth-child({place + 1})"
        return [
            float(each.get_attribute("data-v"))
            for each in table.find_elements("css selector", cells)
        ]

    before = shown()
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert shown() == sorted(before, reverse=True) != before
    button.send_keys(Keys.SPACE)
    assert head.get_attribute("aria-sort") == "ascending"
    assert shown() == sorted(before)
    field = browser.find_element("css selector", "#layers input[type=search]")
    field.send_keys("pooling int8")
    assert 0 < len(shown()) < len(before)
    assert "of" in browser.find_element("css selector", "#layers [aria-live]").text
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    assert len(shown()) == len(before)


def test_blobs_are_opened_by_keyboard(browser, report):
    from selenium.webdriver.common.keys import Keys

    show(browser, report)
    item = browser.find_element("css selector", "#blobs details:not([open])")
    chart = item.find_element("css selector", "svg.histogram")
    assert not chart.is_displayed()
    item.find_element("css selector", "summary").send_keys(Keys.ENTER)
    assert chart.is_displayed()
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus can be seen"


def test_it_can_be_printed(browser, report):
    import base64

    show(browser, report, scheme="dark")
    printed = browser.execute_cdp_cmd(
        "Page.printToPDF", {"preferCSSPageSize": True, "printBackground": False}
    )
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    pages = pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ")
    assert 3 <= pages <= 15, "what is folded is not printed"

"""Reports as one HTML file: the result's numbers, nobody's markup, nothing fetched; and readable in a real browser."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from command_line import loragraft
from gguf_files import write_gguf
from loragraft.evaluate.verdict import percent_text
from loragraft.formats.gguf.values import Value
from loragraft.verbs.report.charts import Mark, Series, bars, grid, scatter
from loragraft.verbs.report.page import Page
from paths import data

TEXT = data("shakespeare-valid.txt").read_text()
_VOID = {"meta", "line", "circle", "rect", "polyline", "br"}


class Strict(HTMLParser):
    """Refuses tags that are not closed in their order, and notes every address."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [
            str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")
        ]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, words: str) -> None:
        self.words.append(words)


def read(html: str) -> tuple[Strict, str]:
    """The page as a strict reader sees it, and its words."""
    strict = Strict()
    strict.feed(html)
    strict.close()
    assert strict.open == []
    assert strict.addresses == []
    assert not {"script", "img", "link", "iframe", "object"} & strict.tags
    assert not re.search(r"url\(|@import|https?:", html)
    return strict, " ".join("".join(strict.words).split())


@pytest.fixture(scope="module")
def comparison() -> Any:
    how = lg.Measurement(TEXT, context=64, windows=4)
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    return lg.compare(base, [adapter], how, types=["Q3_K_M", "Q4_K_M", "Q8_0"])


def test_a_comparison_has_its_numbers_and_its_plot(comparison: Any, tmp_path: Path) -> None:
    html = lg.report(comparison, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == html
    _, words = read(html)
    assert comparison.verdict in words
    for one in comparison.types:
        for row in (one.merged, one.runtime):
            assert row.label in words
            assert f"{row.perplexity.value:.2f} ± {row.perplexity.error:.2f}" in words
            assert f"{percent_text(row.kept)}, " in html  # told by its mark in the plot
        assert one.verdict in words
    assert html.count("<circle") + html.count('<rect x="') >= 6
    assert "<polyline" in html


def test_the_other_results(tmp_path: Path) -> None:
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    how = lg.Measurement(TEXT, context=64, windows=2)
    report = lg.merge(
        base, [(adapter, 0.5)], tmp_path / "m.gguf", type="Q4_K_M", options=lg.QuantizeOptions(verify=True)
    )
    _, words = read(lg.report(report))
    assert report.adapters[0].sha256 in words
    assert f"{report.bits_per_weight:.2f} bits per weight" in words
    assert str(tmp_path) not in words
    checked = lg.check(data("llama-kjv-nvfp4"), [adapter], text=how)
    _, words = read(lg.report(checked))
    assert all(run.name in words for run in checked.runs)
    assert all(linear.name in words for linear in checked.linears)
    inspected = lg.inspect(tmp_path / "m.gguf", [adapter])
    _, words = read(lg.report(inspected))
    assert all(tensor.name in words for tensor in inspected.tensors)
    assert inspected.adapters[0].receipt.sha256 in words


def test_a_budget_shows_every_tensor() -> None:
    how = lg.Measurement(TEXT, context=64, windows=2)
    result = lg.budget(
        data("llama-kjv"), [data("llama-kjv.shakespeare")], how, types=("Q3_K", "Q5_K"), valid_windows=2
    )
    html = lg.report(result)
    _, words = read(html)
    assert result.verdict in words
    for row in result.tensors:
        assert row.name in words
        assert f"{row.cost:.6f}" in words
    assert (
        html.count("bits, expected KL")
        == 2
        * sum(  # for a desk and for a phone
            ".".join(row.name.split(".")[:1]) == "blk" for row in result.tensors
        )
    )


def test_strangers_words_mean_only_themselves(tmp_path: Path) -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e"
    metadata = {"general.architecture": Value.string("llama"), "general.name": Value.string(evil)}
    path = write_gguf(tmp_path / "<b>&'\".gguf", metadata, {"<i>.weight": np.ones((2, 32))})
    html = lg.report(lg.inspect(path))
    _, words = read(html)
    assert "<script>alert(1)</script>" in words
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "<i>.weight" in words


def test_what_there_is_no_report_of() -> None:
    with pytest.raises(lg.LoragraftError, match="there is no report of it"):
        lg.report("model.gguf")  # type: ignore[arg-type]


def test_plots_of_odd_numbers() -> None:
    one = scatter([Series("a", [Mark(1.0, 1e-6, "x", "t", 1.0)])], x_title="x", y_title="y", falling=True)
    assert "nan" not in one
    assert "inf" not in one
    drawn = bars([("a", math.nan, "nan"), ("b", 0.0, "0"), ("c", 2.0, "2")], name="bars", logarithmic=True)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="18"', drawn)]
    assert widths[:2] == widths[3:5] == [0, 0]
    assert widths[2] > 300
    assert widths[5] > 150
    assert "nan" not in re.sub(r">[^<]*<", "", drawn)


def test_the_command_line_writes_it(tmp_path: Path) -> None:
    words = ["inspect", data("llama-kjv"), "--html", tmp_path / "r.html", "--no-tensors"]
    done = loragraft(*words)
    assert done.returncode == 0, done.stderr
    assert "r.html" in done.stderr
    read((tmp_path / "r.html").read_text())
    words = ["check", data("llama-kjv"), "--html", tmp_path / "none" / "r.html"]
    done = loragraft(*words)
    assert done.returncode == 1
    assert "its folder does not exist" in done.stderr
    assert f"mkdir -p {tmp_path / 'none'}" in done.stderr
    done = loragraft("check", data("llama-kjv"), "--html", tmp_path)
    assert done.returncode == 1
    assert f"is a folder: expected the name of a page; name one in it: {tmp_path}/report.html" in done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


#: Texts of plots that are not wholly within them, and texts that lie on one another.
LEFT_OUT = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()])
    .filter(([, own]) => own.width);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
  return texts.filter(([, own], number) => own.left < box.left - 1 || own.right > box.right + 1
    || own.bottom > box.bottom + 1 || texts.some(([, other], place) => place < number && meet(own, other)))
    .map(([words]) => words);
})"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1100])
def test_plots_have_room_for_their_texts(browser: Any, tmp_path: Path, width: int) -> None:
    long = "blk.61.ffn_down_exps.weight of the experts"
    rows = [("F16", 2.0, "269.0 MB"), ("IQ4_XS", 1.0, "140.5 kB"), (long, 0.1, "1.3 MB")]
    names = ["attn_output", "ssm_alpha", "ffn_down"]
    layers = [str(number) for number in range(61)]
    points = [Mark(2.6, 0.02, "Q4_K_M", "t"), Mark(2.7, 0.5, "Q4_K_S", "t"), Mark(2.96, 0.007, "Q5_K_S", "t")]
    page = Page("Plots")
    page.add("bars", bars(rows, name="bars"))
    cells = {(name, layer): (0.5, "t") for name in names for layer in layers}
    page.add("grid", grid(names, layers, cells, name="grid"))
    page.add("points", scatter([Series("chosen", points)], x_title="size, MB", y_title="KL"))
    (tmp_path / "page.html").write_text(page.html())
    shown = browser.new_page(viewport={"width": width, "height": 800})
    shown.goto((tmp_path / "page.html").as_uri())
    assert shown.locator("svg:visible").count() == 3
    assert shown.evaluate(LEFT_OUT) == []
    shown.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_is_readable(browser: Any, comparison: Any, tmp_path: Path, scheme: str, width: int) -> None:
    lg.report(comparison, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours]
    assert (light[0] > light[1]) == (scheme == "dark")
    assert abs(light[0] - light[1]) > 150
    box = page.locator("svg:visible").first.bounding_box()
    assert box["width"] > width * 0.5
    labels = page.locator("svg:visible text").all_text_contents()
    assert {"Q3_K_M", "Q4_K_M", "Q8_0"} <= set(labels)
    assert page.evaluate(LEFT_OUT) == []
    assert len(asked) == 1
    assert said == []
    page.close()

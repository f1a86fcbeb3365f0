"""The page in a real browser: light and dark, on a phone, on paper, without scripts, alone with itself."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.reports import content, epoch, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REPORTS = {
    "ten classes": content(TEN, wrong=20, min_test_accuracy=0.5),
    "long names": content(("a" * 70, "b " * 40, "c"), run_id="r" * 120, wrong=2),
    "two classes": content(min_test_accuracy=0.96),
    "calibrated, with a threshold": content(calibrate=True, threshold="0.3"),
    "nearly no mistakes": content(
        wrong=1,
        num_examples=4000,
        names=tuple(f"{'folder-' * 9}/{index}.jpg" for index in range(4000)),
        history=tuple(
            epoch(
                "head",
                number,
                train_accuracy=0.9981 + number / 4000,
                validation_accuracy=0.9984,
                train_loss=1e-3,
                validation_loss=2e-3,
            )
            for number in range(5)
        ),
    ),
    "no mistakes, one epoch": content(wrong=0, history=(epoch("head", 0),), fine_tune_epochs=0),
}

LOW_CONTRAST = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = color => {
    const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgba(color).slice(0, 3).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const background = element => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return 'white';
  };
  const low = [], seen = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || ['STYLE', 'TITLE'].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const color = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [luminance(color), luminance(background(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    const needed = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    seen.push(text);
    if ((a + .05) / (b + .05) < needed) low.push([text, color, background(element), (a + .05) / (b + .05)]);
  }
  return {low, num_seen: seen.length};
}
"""
"""Texts below the contrast that WCAG 2.2 asks of level AA (1.4.3), by its formula of relative luminance."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        end = pytest.fail if os.environ.get("CI") else pytest.skip
        end("there is no Chromium: `make setup-services` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


QUICK, *MORE = REPORTS


@pytest.fixture(scope="module", params=[QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(render(REPORTS[request.param]), "utf-8")
    return path


def opened(browser: Browser, path: Path, **context: Any) -> Page:
    page = browser.new_context(**context).new_page()
    page.goto(path.as_uri())
    return page


SCREENS = pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
OUTSIDE = """[...document.querySelectorAll('svg')].flatMap(svg => [...svg.querySelectorAll('text')].filter(text => {
    const [it, frame] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
    return it.left < frame.left || it.right > frame.right + 1 || it.bottom > frame.bottom + 1;
}).map(text => text.textContent))"""
"""The texts of plots that are not inside of them."""


def check_fits(browser: Browser, path: Path, width: int, scheme: Any, *, num_texts: int) -> None:
    """A page of at least so many texts fits a screen and can be read, also on paper; it needs no other file."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert all(page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)"))
    assert page.evaluate(OUTSIDE) == []
    for media in ("screen", "print"):
        page.emulate_media(media=media)  # type: ignore[arg-type]
        found = page.evaluate(LOW_CONTRAST)
        assert found["num_seen"] > num_texts
        assert found["low"] == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_nothing_is_requested_from_others_and_nothing_goes_wrong(browser: Browser, report: Path) -> None:
    """One request, which is the page; an empty console; every picture is visible."""
    page = browser.new_context().new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert complaints == []
    pictures = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(pictures) > 12
    assert all(pictures)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_screen(browser: Browser, report: Path, width: int) -> None:
    """Wide tables scroll in a frame of their own; the page never does sideways."""
    page = opened(browser, report, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter(element => !element.parentElement.closest('.wide'))
            .filter(element => element.getBoundingClientRect().right > width + 1)
            .map(element => element.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []


@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.slow)])
def test_every_text_of_a_plot_is_in_it_and_beside_the_others(browser: Browser, report: Path, width: int) -> None:
    """Labels, ticks and legends, in the fonts of the page."""
    page = opened(browser, report, viewport={"width": width, "height": 800})
    harmed = page.evaluate(
        """() => [...document.querySelectorAll('svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')].map(text => [text, text.getBoundingClientRect()]);
            const cut = ([, it]) => it.left < frame.left || it.right > frame.right + 1
                || it.top < frame.top || it.bottom > frame.bottom + 1;
            const label = ([text]) => /rotate\\((-90|270)/.test(text.outerHTML);
            const meet = ([, a], [, b]) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
            const labels = texts.filter(label), others = texts.filter(text => !label(text));
            if (!labels.length) return ['no label'];
            return [...texts.filter(cut), ...labels.filter(one => others.some(other => meet(one, other)))]
                .map(([text]) => text.textContent);
        })"""
    )
    assert harmed == []


def test_a_table_that_goes_on_fades_at_that_side(browser: Browser, report: Path) -> None:
    """At the right until it has been scrolled to its end, then at the left; one that fits does not."""
    page = opened(browser, report, viewport={"width": 360, "height": 800})
    faded = """async () => {
        const one = [...document.querySelectorAll('.wide')].filter(it => it.clientWidth);
        const sides = () => one.map(it => ['--before', '--after'].map(
            side => parseFloat(getComputedStyle(it).getPropertyValue(side)) > 0));
        const frame = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        await frame();
        const first = sides();
        one.forEach(it => it.scrollLeft = it.scrollWidth);
        await frame();
        return [one.map(it => it.scrollWidth > it.clientWidth), first, sides()];
    }"""
    wide, first, last = page.evaluate(faded)
    assert any(wide)
    assert first == [[False, goes_on] for goes_on in wide]
    assert last == [[goes_on, False] for goes_on in wide]


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_every_text_can_be_read(browser: Browser, report: Path, scheme: str) -> None:
    """Contrast of each text with what is behind it, plots included; and the dark is dark."""
    page = opened(browser, report, color_scheme=scheme)
    found = page.evaluate(LOW_CONTRAST)
    assert found["num_seen"] > 150
    assert found["low"] == []
    colors = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colors == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.slow
def test_the_structure_can_be_heard(browser: Browser, report: Path) -> None:
    """A language, one main heading, no level left out, a header for every column, a name for every picture."""
    page = opened(browser, report)
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = [
        int(level) for level in page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName[1])")
    ]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    for lacking in (
        "[...document.images].filter(image => !image.alt)",
        "[...document.querySelectorAll('th')].filter(cell => !cell.scope)",
        "[...document.querySelectorAll('table')].filter(table => !table.querySelector('thead th'))",
    ):
        assert page.evaluate(f"{lacking}.length") == 0, lacking
    assert page.get_by_role("img").count() >= len(page.query_selector_all("img")) + 4


@pytest.mark.slow
def test_it_works_without_scripts_and_on_white_paper(browser: Browser, report: Path) -> None:
    """Also where the screen is dark; every text on the paper is dark enough."""
    page = opened(browser, report, java_script_enabled=False, color_scheme="dark")
    assert page.get_by_role("heading", level=1).is_visible()
    assert page.get_by_text("Every class in numbers").is_visible()
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
    page = opened(browser, report, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(LOW_CONTRAST)["low"] == []


@pytest.mark.slow
def test_a_page_of_a_thousand_classes_stays_usable(browser: Browser, tmp_path: Path) -> None:
    """Its size, its length on a screen and on paper, and its folded table, which has them all."""
    names = tuple(f"class {number:04}" for number in range(1000))
    path = tmp_path / "index.html"
    path.write_text(render(content(names, num_examples=2000, wrong=700)), "utf-8")
    assert path.stat().st_size < 1_000_000
    for width, scheme in ((360, "dark"), (1280, "light")):
        page = opened(browser, path, viewport={"width": width, "height": 800}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.documentElement.scrollHeight") < 25_000
        assert page.evaluate(LOW_CONTRAST)["low"] == []
    assert page.pdf(format="A4").count(b"/Type /Page\n") <= 15
    page.get_by_text("Every class in numbers").click()
    assert page.get_by_role("region", name="Every class in numbers").get_by_role("row").count() == 1 + 1000 + 1

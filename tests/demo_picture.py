"""Writes docs/demo.svg and docs/report.png: what `make demo` leaves on a terminal, and the report of that run.

`python -m tests.demo_picture` makes a real run for them. The first picture loads nothing, not even a font.
"""

import io
import re
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from tests.conftest import REPOSITORY
from tests.manifests import demo_settings
from tests.terminal import written_in_terminal
from tests.test_report_browser import ARGUMENTS, CHROMIUM

PICTURE = REPOSITORY / "docs" / "demo.svg"
REPORT = REPOSITORY / "docs" / "report.png"
COLUMNS = 80
PAGE_SIZE = 1120, 1724
"""In each half of the report's picture, which is half as large."""
FORMAT = """\
<svg viewBox="8 40 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>make demo on a terminal</title>
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g class="{unique_id}-matrix" transform="translate({terminal_x}, {terminal_y})">{backgrounds}{matrix}</g>
</svg>
"""


def last_screen(written: str) -> Text:
    """What stays, in color; a line that moves is erased as a whole before it is written again."""
    lines, row = [""], 0
    for move, text in re.findall(r"(\x1b\[\d*[AK]|\n)|((?:\x1b\[[\d;]*m|[^\n\x1b])+)", written):
        if move == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif move.endswith("A"):
            row -= int(move[2:-1] or 1)
        elif move:
            lines[row] = ""
        lines[row] += text.replace("\r", "")
    return Text.from_ansi("\n".join(lines).rstrip())


def of_report(page_file: Path) -> Image.Image:
    """The top of a report, and beside it the report from the training on."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as browser,
    ):
        page = browser.new_page(viewport={"width": PAGE_SIZE[0], "height": PAGE_SIZE[1]})
        halves = []
        for part in ("", "#learning"):
            page.goto(page_file.as_uri() + part)
            halves.append(Image.open(io.BytesIO(page.screenshot())))
    both = Image.new("RGB", (2 * PAGE_SIZE[0], PAGE_SIZE[1]))
    for number, half in enumerate(halves):
        both.paste(half, (number * PAGE_SIZE[0], 0))
    return both.reduce(2).quantize()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        variables = demo_settings() | {"PYTHONPATH": str(REPOSITORY)}
        code, written = written_in_terminal(
            ["-m", "job"], cwd=Path(folder), columns=COLUMNS, variables=variables, seconds=900
        )
        if code:
            raise SystemExit(written)
        (page_file,) = Path(folder).rglob("report/index.html")
        of_report(page_file).save(REPORT, optimize=True)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text("$ make demo", "bold"))
    console.print(last_screen(written))
    console.save_svg(str(PICTURE), title="", code_format=FORMAT, unique_id="demo")


if __name__ == "__main__":
    main()

"""Opens reports in a real browser, headless: `python -m tools.check_report FILE...`.

A page passes if it needs nothing from outside itself, every figure shows, no script fails, and
every sortable table sorts both ways by every column. Exit codes: 0 all pass, 1 one does not, 2 no
browser, a wrong command line or a missing file.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_LINKS = {"src", "href", "srcset", "poster", "data", "action"}
_OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
_STYLED = re.compile(r"(?:url\(|@import)\s*['\"]?\s*(?:https?:)?//[^\s'\")]*", re.IGNORECASE)
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")  # that browsers show, too
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_SECONDS = 60
_VIRTUAL_MILLISECONDS = 10_000

# First in the page, so that it hears of errors in all scripts that follow and of missing resources.
_LISTEN = """<script>
window.reportErrors = [];
{
  const heard = (text) => reportErrors.push(text);
  const what = ({target}) => "not loaded: " + target.outerHTML.slice(0, 80);
  addEventListener("error", (event) => heard(event.message || what(event)), true);
  addEventListener("unhandledrejection", (event) => heard(String(event.reason)));
  addEventListener("securitypolicyviolation", (event) => heard("blocked: " + event.blockedURI));
  console.error = (...all) => heard(all.join(" "));
}
</script>"""
_VERDICT = "report-verdict"
_INSPECT = """<script>
// What the page's policy refuses is told after load.
addEventListener("load", () => setTimeout(() => {
  const problems = [];
  const images = [...document.images];
  for (const image of images)
    if (!image.complete || image.naturalWidth === 0)
      problems.push("image not shown: " + (image.alt || image.getAttribute("src").slice(0, 60)));
  const tables = [...document.querySelectorAll("table.sortable")];
  let columns = 0;
  const ordered = (cells, sign) => {
    const values = cells.map((cell) => cell.dataset.number ?? cell.textContent);
    const present = values.filter((value) => value !== "");
    if (values.slice(0, present.length).includes("")) return "missing values are not last";
    const compare = (a, b) =>
      "number" in cells[0].dataset ? Number(a) - Number(b) : a.localeCompare(b, "en");
    for (let at = 1; at < present.length; at += 1)
      if (sign * compare(present[at - 1], present[at]) > 0)
        return present[at - 1] + " stands before " + present[at];
    return "";
  };
  for (const [number, table] of tables.entries()) {
    const body = table.tBodies[0];
    const texts = () => [...body.rows].map((row) => row.textContent).sort().join("|");
    const before = texts();
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      const button = head.querySelector("button");
      if (!button) continue;
      columns += 1;
      for (const [direction, sign] of [["ascending", 1], ["descending", -1]]) {
        const where = `table ${number + 1}, ${button.textContent.trim()}, ${direction}: `;
        button.click();
        if (head.getAttribute("aria-sort") !== direction)
          problems.push(where + "aria-sort is " + head.getAttribute("aria-sort"));
        const problem = ordered([...body.rows].map((row) => row.cells[column]), sign);
        if (problem) problems.push(where + problem);
      }
    }
    if (texts() !== before) problems.push(`table ${number + 1}: sorting changed the rows`);
  }
  for (const head of document.querySelectorAll("[data-figure]")) {
    let found = false;
    for (let at = head.nextElementSibling; at && !at.matches("h2, h3"); at = at.nextElementSibling)
      found ||= at.matches("figure") || at.querySelector("figure") !== null;
    if (!found) problems.push("no figure under " + head.textContent);
  }
  if (!images.length) problems.push("no figure");
  if (!columns) problems.push("no sortable table");
  const verdict = document.createElement("pre");
  verdict.id = "report-verdict";
  verdict.textContent = JSON.stringify({
    images: images.length, tables: tables.length, columns, problems: [...problems, ...reportErrors],
  });
  document.body.append(verdict);
}, 100));
</script>"""


class NoBrowserError(RuntimeError):
    """There is no browser to open a page in."""


class _Page(HTMLParser):
    """Collects what a page would fetch from outside, and its damaged images."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attributes:
            if value is None:
                continue
            if name in _LINKS and _OUTSIDE.match(value):
                self._outside(f"<{tag} {name}={value[:80]!r}>")
            elif name == "style":
                self._styled(value)
            elif tag == "img" and name == "src" and value.startswith("data:"):
                self._decode(value, dict(attributes).get("alt") or "an image without text")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._styled(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def _styled(self, style: str) -> None:
        for link in _STYLED.findall(style):
            self._outside(link)

    def _outside(self, link: str) -> None:
        self.problems.append(f"not self-contained: {link}")

    def _decode(self, address: str, text: str) -> None:
        try:
            encoded = io.BytesIO(base64.b64decode(address.partition(",")[2]))
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(encoded, formats=_FORMATS) as image:
                    image.load()
        except (OSError, SyntaxError, ValueError, *_BOMBS) as error:  # Pillow's for damaged files
            self.problems.append(f"image damaged: {text} ({error})")


def source_problems(page: str) -> list[str]:
    """What is wrong with a page before any browser opens it.

    Links to anything outside it in src, href and the like and in styles, and embedded images that
    are damaged or cut short, of which a browser shows a part without complaint.
    """
    parser = _Page()
    parser.feed(page)
    return parser.problems


def find_browser() -> str:
    """The browser that $CHROME names, or the first of Chromium and Chrome on PATH.

    Raises:
        NoBrowserError: there is none.
    """
    wanted = os.environ.get("CHROME")
    for name in (wanted,) if wanted else _BROWSERS:
        if found := shutil.which(name):
            return found
    raise NoBrowserError(
        (f"$CHROME names {wanted!r}, which is no program" if wanted else "no Chromium or Chrome")
        + "; install one (Debian: apt-get install chromium) or set CHROME to its path"
    )


def check(path: Path, browser: str) -> dict[str, object]:
    """Opens a copy of a page, away from the files beside it, and tries what it does.

    Args:
        path: the HTML file.
        browser: Chromium or Chrome.

    Returns:
        images, tables (sortable ones), columns (that sort) and problems (empty if it passes).

    Raises:
        ValueError: the file has no head or body.
        RuntimeError: the browser gives no verdict.
    """
    page = path.read_text(encoding="utf-8")
    head = re.search(r"<head[^>]*>", page)
    end = page.rfind("</body>")
    if head is None or end < head.end():
        raise ValueError(f"{path} is not a report: it has no <head> or no </body>")
    # Ahead of the page's Content-Security-Policy, which forbids scripts that are not its own.
    probed = page[: head.end()] + _LISTEN + _INSPECT + page[head.end() :]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder, "report.html")
        copy.write_text(probed, encoding="utf-8")
        dumped = _browse(
            browser,
            Path(folder, "profile"),
            ["--dump-dom", f"--virtual-time-budget={_VIRTUAL_MILLISECONDS}", copy.as_uri()],
        )
    found = re.findall(rf'<pre id="{_VERDICT}">(.*?)</pre>', dumped, re.DOTALL)
    if not found:
        raise RuntimeError(f"{browser} gave no verdict on {path}; did its scripts run?")
    verdict = json.loads(html.unescape(found[-1]))
    verdict["problems"] += source_problems(page)
    return verdict


def screenshot(
    path: Path, browser: str, image: Path, *, width: int, height: int, dark: bool
) -> None:
    """Saves how a page looks.

    Args:
        path: the HTML file.
        browser: Chromium or Chrome.
        image: the PNG file to write.
        width, height: size of the window, in CSS pixels.
        dark: in dark mode.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _browse(
            browser,
            Path(folder, "profile"),
            [
                f"--window-size={width},{height}",
                "--hide-scrollbars",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--screenshot={image.resolve()}",
                path.resolve().as_uri(),
            ],
        )


def _browse(browser: str, profile: Path, arguments: Sequence[str]) -> str:
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # which a container's root needs; the page is our own
        "--disable-gpu",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
        f"--user-data-dir={profile}",
        *arguments,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{browser} did not finish within {_SECONDS} s") from error
    if done.returncode:
        raise RuntimeError(f"{browser} failed ({done.returncode}): {done.stderr[-500:]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_report",
        description="Opens reports in a headless browser: figures, scripts, sortable tables.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="report.html of a run")
    parser.add_argument("--screenshot", type=Path, help="also save the first page as a PNG")
    parser.add_argument("--width", type=int, default=1200, help="width of the screenshot, pixels")
    parser.add_argument("--height", type=int, default=2400, help="height of the screenshot, pixels")
    parser.add_argument("--dark", action="store_true", help="take the screenshot in dark mode")
    options = parser.parse_args(arguments)
    if missing := [str(file) for file in options.files if not file.is_file()]:
        print(f"error: no report at {', '.join(missing)}; run the pipeline first", file=sys.stderr)
        return 2
    try:
        browser = find_browser()
    except NoBrowserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    passed = True
    for file in options.files:
        try:
            verdict = check(file, browser)
        except (ValueError, RuntimeError) as error:
            verdict = {"problems": [str(error)]}
        passed = passed and not verdict["problems"]
        print(f"{file}: {json.dumps(verdict)}")
    if options.screenshot:
        size = {"width": options.width, "height": options.height}
        screenshot(options.files[0], browser, options.screenshot, **size, dark=options.dark)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

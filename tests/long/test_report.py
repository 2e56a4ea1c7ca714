"""The report page as a browser takes it."""

import base64
import hashlib
import re

import pytest
from PIL import Image

from tests.report_page import write_full
from tools import check_report

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_full(tmp_path_factory.mktemp("report"))


def _browser():
    try:
        return check_report.find_browser()
    except check_report.NoBrowserError:
        return None


in_a_browser = pytest.mark.skipif(_browser() is None, reason="neither Chromium nor Chrome is here")


@in_a_browser
def test_a_browser_takes_the_page(page, tmp_path):
    verdict = check_report.check(page, _browser())
    assert verdict == {"images": 10, "tables": 5, "columns": 11 + 11 + 9 + 9 + 8, "problems": []}
    image = tmp_path / "page.png"
    arguments = ["--screenshot", str(image), "--width", "390", "--height", "500", "--dark"]
    assert check_report.main([str(page), *arguments]) == 0
    with Image.open(image) as picture:
        assert picture.size == (390, 500)
        assert picture.convert("L").getpixel((2, 2)) < 60


_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@in_a_browser
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("</body>", '<img src="beside.png" alt="beside"></body>', "image not shown: beside"),
        ("</body>", "<script>foreign();</script></body>", "blocked: inline"),
        ("<script>", "<script>nowhere();", "nowhere is not defined"),
        ("<script>", "<script>console.error('off');", "off"),
        ("body.append(", "void (", "stands before"),
        ("a.dataset.number - b.dataset.number", "0", "stands before"),
        ("(up ? 1 : -1) *", "", "descending"),
        ("missing(a) - missing(b) ||", "", "missing values are not last"),
        ("<button", "<span", "no sortable table"),
        ('id="deciles"', 'id="calibrated" data-figure>Other</h3><h3', "no figure under Other"),
    ],
)
def test_a_browser_finds_what_is_broken(page, tmp_path, old, new, problem):
    text = page.read_text()
    assert old in text
    broken = tmp_path / "report.html"
    changed = text.replace(old, new)
    # The page's own script is allowed by its hash, as broken as it is.
    allowed, own = (
        base64.b64encode(hashlib.sha256(re.search(_SCRIPT, one)[1].encode()).digest()).decode()
        for one in (text, changed)
    )
    broken.write_text(changed.replace(allowed, own))
    assert any(problem in one for one in check_report.check(broken, _browser())["problems"])
    assert check_report.main([str(broken)]) == 1

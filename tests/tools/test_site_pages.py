"""What the documentation site is given beside the pages in docs/."""

import doctest
import re
from pathlib import Path

import pytest

from jaxcurv.models import ResNet
from tests.conftest import ROOT
from tools import site_pages

PAGES = sorted(site_pages.DOCS.rglob("*.md"))
NAV = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]


def test_every_page_is_in_the_navigation_and_is_there() -> None:
    named = set(re.findall(r"([\w./-]+\.md)$", NAV, re.MULTILINE))
    notebooks = [path.with_suffix(".md") for path in site_pages.DOCS.rglob("*.ipynb")]
    pages = {page.relative_to(site_pages.DOCS).as_posix() for page in [*PAGES, *notebooks]}
    linked = {place for place in site_pages.linked_files() if place.endswith(".md")}
    assert named == pages | linked


def test_every_public_name_is_documented_once() -> None:
    found = site_pages.documented()
    names = [path for paths in found.values() for path in paths]
    assert len(names) == len(set(names))
    assert "jaxcurv.input_curvature" in found["jaxcurv"]
    assert "bridge.program" in found["bridge"]
    assert "bridge.chips.program" not in found["bridge.chips"]
    assert "bridge.chips.ADC" in found["bridge.chips"]
    assert "jaxcurv.estimators.BatchProblem" in found["jaxcurv.estimators"]
    assert "jaxcurv.estimators.FiniteDifference" not in found["jaxcurv.estimators"]
    last = {path.rpartition(".")[2] for path in names}
    for package in site_pages.NAMESPACES:
        assert {one.rpartition(".")[2] for one in site_pages.public_names(package)} <= last
        assert (
            f"<!-- names of {package} -->"
            in (site_pages.DOCS / "reference" / f"{package}.md").read_text()
        )


def test_marks_become_what_the_program_says() -> None:
    page = site_pages.with_made_parts("before\n\n<!-- names of jaxcurv.models -->\n\nafter\n")
    paths = [f"jaxcurv.models.{name}" for name in ("ResNet", "ResNet18", "ResNet50")]
    before, listed, *documented, after = page.split("\n\n")
    assert (before, after) == ("before", "after\n")
    assert documented == [f"::: {path}" for path in paths]
    first, *others = listed.split("\n")
    assert first == f"- [`ResNet`](#{paths[0]}): {ResNet.__doc__.splitlines()[0]}"
    assert [line.partition("):")[0] for line in others] == [
        f"- [`{path.rpartition('.')[2]}`](#{path}" for path in paths[1:]
    ]


def test_a_value_is_listed_without_a_line() -> None:
    page = site_pages.with_made_parts("<!-- names of bridge -->")
    assert "\n- [`PROFILES`](#bridge.PROFILES)\n" in f"\n{page}"


def test_a_function_is_shown_where_its_module_has_its_name() -> None:
    page = site_pages.with_made_parts("<!-- names of bridge.jax_chips -->")
    path = "bridge.jax_chips.output_noise"
    assert f"\n- [`output_noise`](#{path}.output_noise): The variance of each sample's" in page
    assert f"\n::: {path}.output_noise\n    options:\n      heading: {path}\n" in page
    assert f"::: {path}\n" not in page
    assert "\n::: bridge.jax_chips.predict\n" in page


def test_flags_that_commands_share_with_run_are_shown_once() -> None:
    page = site_pages.command_line()
    commands = dict(re.findall(r"^### (.+?)$(.+?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert page.count("\n  --train.epochs N\n") == 1
    assert "\n  --train.epochs N\n" in commands["run"]
    assert "those of [`run`]" not in commands["run"]
    assert "those of [`run`](#run)" in commands["train"]
    assert "\nFlags" not in commands["train"]
    assert re.findall(r"^Flags(.*):$", commands["drift"], re.MULTILINE) == [" --drift.*"]
    assert "\n  --out " in commands["score --model"]
    assert max(map(len, page.splitlines())) <= 84


def test_the_page_of_columns_is_the_dictionary() -> None:
    page = site_pages.with_made_parts((site_pages.DOCS / "reference/columns.md").read_text())
    assert len(re.findall("^# ", page, re.MULTILINE)) == 1
    assert "\n### deciles\n" in page
    assert "| `rate_of_correct` | " in page


def test_links_lead_to_the_files_of_the_site() -> None:
    page = site_pages.DOCS / "guides" / "chips.md"
    text = (
        "[a](data.md#x) [b](../../BUILD_NOTES.md) ![c](../../experiments/results/x.png) "
        "[`d`](../../CONTRIBUTING.md#test) [e](https://example.org) [f](#g) `[h](../../i.md)` "
        "[folder](../../experiments/results/)"
    )
    assert site_pages.with_links_of_the_site(text, page, "guides/chips.md") == (
        "[a](data.md#x) [b](../repository/BUILD_NOTES.md) "
        "![c](../repository/experiments/results/x.png) "
        "[`d`](../repository/CONTRIBUTING.md#test) [e](https://example.org) [f](#g) "
        "`[h](../../i.md)` folder"
    )
    notes = ROOT / "CONTRIBUTING.md"
    link = site_pages.with_links_of_the_site(
        "[s](docs/guides/studies.md)", notes, "repository/CONTRIBUTING.md"
    )
    assert link == "[s](../guides/studies.md)"


def test_pictures_of_pages_outside_of_docs_come_along() -> None:
    found = site_pages.linked_files()
    assert found["repository/CONTRIBUTING.md"] == ROOT / "CONTRIBUTING.md"
    results = "experiments/results/cifar10_akamaster_resnet20/figures/figure_one.png"
    assert found[f"repository/{results}"] == ROOT / results


@pytest.mark.parametrize("indent", ["", "    "])
def test_doctests_become_code(indent: str) -> None:
    lines = ["Words.", "", ">>> one = 1", ">>> one", "1", "", "More words."]
    docstring = "\n".join(indent + line if line else "" for line in lines)
    found = site_pages.fenced(docstring)
    code = "\n".join(indent + line for line in ["```pycon", *lines[2:5], "```"])
    assert found == f"{indent}Words.\n\n{code}\n\n{indent}More words."
    assert len(doctest.DocTestParser().get_examples(found)) == 2


def test_each_name_of_a_docstring_has_an_entry() -> None:
    docstring = "Words, more: these.\n\nArgs:\n  a, b: both,\n    told: once.\n  c: alone.\n"
    entries = "  a: both,\n    told: once.\n  b: both,\n    told: once.\n  c: alone.\n"
    assert site_pages.one_each(docstring) == f"Words, more: these.\n\nArgs:\n{entries}"


def test_short_code_is_marked_and_a_picture_leads_to_its_file() -> None:
    long = "x" * 33
    html = f"<code>--limit</code> <code>{long}</code> <code>two\nlines</code> "
    html += '<img alt="a" src="b.png">'
    assert site_pages.on_page_content(html, None, None, None) == (
        f'<code class="short">--limit</code> <code>{long}</code> <code>two\nlines</code> '
        '<a href="b.png"><img alt="a" src="b.png"></a>'
    )


def anchors(page: Path) -> set[str]:
    """The places in a page that links can name."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in titles}


@pytest.mark.parametrize(
    "page",
    [
        *(ROOT / name for name in ("README.md", "BUILD_NOTES.md", "CONTRIBUTING.md")),
        *(ROOT / name for name in ("CHANGELOG.md", "experiments/results/README.md")),
        *PAGES,
    ],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in site_pages.links(page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target

"""The tutorials as they are kept: run in order, without errors, on public names alone."""

import ast
import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tools import site_notebooks, site_pages, tutorials

NOTEBOOKS = sorted(tutorials.TUTORIALS.glob("*.ipynb"))
PUBLIC = {name for package in site_pages.NAMESPACES for name in site_pages.public_names(package)}
PUBLIC |= set(site_pages.NAMESPACES)
LONGEST_OUTPUT = 40
"""Lines."""

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [
        cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def said(output: dict[str, Any]) -> str:
    """The words of an output, HTML too."""
    data = output.get("data", {})
    return "".join(
        "".join(text) for text in (output.get("text", []), *data.values()) if text != "image/png"
    )


def python_of(notebook: Path) -> str:
    """The code without what the shell runs."""
    cells = site_notebooks.cells(notebook, "code")
    return "\n".join(cell for cell in cells if not cell.startswith("!"))


def wrong_names(code: str) -> set[str]:
    """The names of this project in code that are not public."""
    used = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
    own = {name for name in used if re.fullmatch(r"(?:jaxcurv|bridge|experiments)[\w.]*", name)}
    return own - PUBLIC


def test_the_five_are_there_and_on_the_first_page() -> None:
    assert len(NOTEBOOKS) == 5
    index = (site_pages.DOCS / "index.md").read_text()
    for notebook in NOTEBOOKS:
        assert f"(tutorials/{notebook.name})" in index


@each_notebook
def test_it_was_run_in_order_and_without_errors(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", said(output)
        words = "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
        assert words.count("\n") <= LONGEST_OUTPUT, words
        assert "Warning" not in words


@each_notebook
def test_it_names_no_place_on_a_machine(notebook: Path) -> None:
    text = re.sub(r'"image/png": "[^"]*"', "", notebook.read_text())
    assert not re.search(
        r"(?<![\w.])/(?:home|root|tmp|work|Users|private|var)/|site-packages", text
    )
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


@each_notebook
def test_it_uses_public_names(notebook: Path) -> None:
    assert wrong_names(python_of(notebook)) == set()


def test_names_that_are_not_public_are_found() -> None:
    code = "import bridge\nfrom jaxcurv.dataset import score_dataset\nbridge.routing.curves.x()"
    code += "\nbridge.routing.routing_curve()\nbridge.PROFILES['ideal'].name"
    wrong = {"jaxcurv.dataset.score_dataset", "bridge.routing.curves", "bridge.routing.curves.x"}
    assert wrong_names(code) == wrong


@each_notebook
def test_its_links_lead_somewhere(notebook: Path) -> None:
    for text in site_notebooks.cells(notebook, "markdown"):
        for target in site_pages.links(text):
            if "://" not in target:
                assert (notebook.parent / target.partition("#")[0]).is_file(), target


def test_their_code_is_clean() -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", str(tutorials.TUTORIALS)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def write(path: Path, *cells: dict[str, Any]) -> Path:
    """A notebook of these cells."""
    whole = [{"metadata": {}, "id": f"cell-{number}", **cell} for number, cell in enumerate(cells)]
    path.write_text(
        json.dumps({"cells": whole, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def code(source: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "source": source.splitlines(keepends=True),
        "outputs": list(outputs),
    }


def test_a_page_has_text_code_and_outputs_in_order(tmp_path: Path) -> None:
    notebook = write(
        tmp_path / "own.ipynb",
        {"cell_type": "markdown", "source": ["# Own\n", "\n", "Words."]},
        code(
            "print(1)\ntable",
            {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
            {
                "output_type": "execute_result",
                "data": {
                    "text/plain": ["x"],
                    "text/html": [
                        "<div>\n<style>\nth {}\n</style>\n",
                        '<table border="1" class="dataframe">\n',
                        '<tr style="text-align: right;"><th></th></tr></table></div>',
                    ],
                },
            },
        ),
        code(
            "draw();",
            {
                "output_type": "display_data",
                "data": {
                    "image/png": base64.b64encode(b"pixels").decode(),
                    "text/plain": ["<Figure>"],
                },
            },
        ),
        code("pass"),
    )
    page = site_notebooks.page_of(notebook)
    assert page.pictures == {"own-1.png": b"pixels"}
    assert page.markdown == (
        '# Own\n\n<a href="own.ipynb" download>Download this notebook</a>\n\nWords.\n\n'
        "```python\nprint(1)\ntable\n```\n\n```text\n1\n```\n\n<div>\n<table>\n"
        "<tr><th></th></tr></table></div>\n\n"
        "```python\ndraw();\n```\n\n![Figure 1: Own](own-1.png)\n\n```python\npass\n```\n"
    )


def test_long_lines_of_outputs_fit_on_the_page(tmp_path: Path) -> None:
    said = {"output_type": "stream", "name": "stdout", "text": ["word " * 40 + "\n", "  short\n"]}
    notebook = write(
        tmp_path / "own.ipynb", {"cell_type": "markdown", "source": ["# Own"]}, code("say()", said)
    )
    lines = site_notebooks.page_of(notebook).markdown.partition("```text\n")[2].splitlines()
    assert max(map(len, lines)) <= 72
    assert " ".join(lines[:-2]).split() == ["word"] * 40
    assert lines[-2] == "  short"


def test_links_to_notebooks_lead_to_their_pages() -> None:
    text = "[r](tutorials/routing.ipynb#the-router)"
    page = site_pages.DOCS / "index.md"
    found = site_pages.with_links_of_the_site(text, page, "index.md")
    assert found == "[r](tutorials/routing.md#the-router)"


def test_a_notebook_runs_in_the_folder_and_keeps_what_a_terminal_shows(tmp_path: Path) -> None:
    notebook = write(
        tmp_path / "own.ipynb",
        code("from pathlib import Path\nfrom tqdm import tqdm\nfor _ in tqdm(range(3)):\n    pass"),
        code("Path('left.txt').write_text('here')"),
        code("!python -c \"print('busy', end='\\r'); print('\\033[1mdone\\033[0m')\""),
    )
    place = tmp_path / "place"
    place.mkdir()
    first, second, third = tutorials.executed(notebook, place).cells
    assert first.outputs == []
    assert second.outputs[0]["data"]["text/plain"] == "4"
    assert (place / "left.txt").read_text() == "here"
    assert third.outputs[0]["text"] == "done\n"


def test_a_name_that_is_no_tutorial_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no tutorial 'tea'; choose from .*routing"):
        tutorials.rerun(["tea"])

"""The hooks before a commit do what `make check` does."""

import re

import yaml

from tests.conftest import ROOT


def test_the_hooks_are_the_parts_of_make_check() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    parts = recipe[1].replace("$(RUN)", ".venv/bin/python -m").replace("$(VENV)", ".venv")
    assert [hook["entry"] for hook in local["hooks"]] == [
        line.strip() for line in parts.splitlines()
    ]
    for hook in local["hooks"]:  # of the whole project, whatever file changes
        assert hook["pass_filenames"] is False
        assert re.search(hook["files"], "bridge/analysis/__init__.pyi")
        assert re.search(hook["files"], "tests/pages.py")

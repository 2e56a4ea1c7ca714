"""The commands where packages of jaxcurv[experiments] are missing: what is said before any work."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import commands


@pytest.mark.parametrize("command", commands._COMMANDS)
def test_each_command_names_all_that_is_missing_before_it_starts(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "jinja2", "sklearn", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(commands._COMMANDS, command, lambda _: pytest.fail("it has started"))
    assert commands.run([command, "digits"]) == 2
    assert capsys.readouterr().err == (
        f"error: jaxcurv {command} needs matplotlib, jinja2, sklearn, which are not "
        'installed: pip install "jaxcurv[experiments]"\n'
    )


def test_usage_and_version_need_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in commands._PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    for flag in ("--help", "--version"):
        assert commands.run([flag]) == 0
    assert "jaxcurv 0." in capsys.readouterr().out


def test_a_checkout_that_is_not_installed_says_so() -> None:
    lines = (
        "import sys",
        "sys.modules['lazy_loader'] = None",
        "from experiments.__main__ import main",
        "main()",
    )
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        2,
        "error: jaxcurv is not installed (lazy_loader is missing): "
        'pip install ".[experiments]" in its checkout\n',
    )

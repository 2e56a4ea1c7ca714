"""The README's Python, as a user would paste it: one block after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

README = Path(__file__).parent.parent / "README.md"
EARLIER_README = Path(__file__).parent / "earlier_readme.md"

SHALLOW = """
import pytest
from tests.shallow_resnet import replace_resnet18

replace_resnet18(pytest.MonkeyPatch())
"""
"""Before the blocks: compiling the whole ResNet-18 takes most of their time."""


def blocks_of(page: Path) -> list[str]:
    """The page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def run_blocks(page: Path, folder: Path, before: str = SHALLOW) -> str:
    """Runs the page's blocks in one process, in the folder; returns its standard error."""
    blocks = blocks_of(page)
    assert len(blocks) >= 4
    result = subprocess.run(
        [sys.executable, "-c", "\n".join([before, *blocks])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} >= {"scores.parquet", "chip.safetensors"}
    return result.stderr


def test_the_readme_s_blocks_run_in_order(tmp_path: Path) -> None:
    assert "DeprecationWarning" not in run_blocks(README, tmp_path)
    assert "Which score predicts failure" in (tmp_path / "report.html").read_text()


def test_each_first_result_is_ten_lines_at_most() -> None:
    """A Linen model's scores, a torch network's failures and scores, flips without a chip's run."""
    _, *blocks = blocks_of(README)
    calls = (
        *("jaxcurv.score_dataset(", "bridge.failure_table("),
        *("bridge.score(", "jaxcurv.flip_probability("),
    )
    for call, block in zip(calls, blocks, strict=False):
        assert call in block
        assert len([line for line in block.splitlines() if line]) <= 10
    (whole,) = (block for block in blocks if "bridge.simulate(" in block)
    assert "jaxcurv.image_folder(" in whole
    assert "study.report(" in whole
    assert len(whole.splitlines()) <= 10


def test_version_0_1_0_s_blocks_run_and_each_earlier_name_says_the_new_one(tmp_path: Path) -> None:
    told = run_blocks(EARLIER_README, tmp_path)
    for name, place in {
        "bridge.twin": "bridge.weights.twin",
        "bridge.layer_report": "bridge.chips.layer_report",
        "bridge.logit_scores": "bridge.analysis.logit_scores",
        "bridge.routing_curve": "bridge.routing.routing_curve",
        "bridge.moment_state_dict": "bridge.chips.moment_state_dict",
        "bridge.flip_probability": "bridge.analysis.gaussian_flip_probability",
        "jaxcurv.margin_table": "jaxcurv.margins.margin_table",
    }.items():
        assert f"DeprecationWarning: {name} is {place} now" in told

"""The Python of version 0.1.0's README still runs; that of today's is in `tests/test_pages.py`."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.pages import blocks_of

EARLIER_README = Path(__file__).parent / "earlier_readme.md"

SHALLOW = """
import pytest
from tests.shallow_resnet import replace_resnet18

replace_resnet18(pytest.MonkeyPatch())
"""
"""Before the blocks: compiling the whole ResNet-18 takes most of their time."""


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

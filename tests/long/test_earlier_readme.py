"""The Python of the README of version 0.1.0, word for word: its names work, with warnings."""

from pathlib import Path

import pytest

from tests.test_readme import run_blocks

pytestmark = pytest.mark.long

EARLIER_README = Path(__file__).parents[1] / "earlier_readme.md"


def test_it_runs_and_every_earlier_name_says_the_new_one(tmp_path: Path) -> None:
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

"""The demo's answer does not depend on the seed that its network was trained with."""

import re
from pathlib import Path

import pytest

from tests.conftest import Command

pytestmark = pytest.mark.long

SEEDS = 10


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_answer_stands_over_training_seeds(command: Command, tmp_path: Path, seed: int) -> None:
    """Failures rise with curvature, of all samples and of the digitally correct ones."""
    result = command("run", "digits", "--seed", str(seed), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    found = re.findall(
        r"Under adc\+wnoise\+pcm_gdc at t = 20 s, ([\d.]+) % of D1 and ([\d.]+) % of D10 fail "
        r"\((?:[^()]|\([^()]*\))*\); Spearman's rho = [^:]*: ([a-z ]+)",
        said,
    )
    assert [answer for *_, answer in found] == ["failures rise with curvature"] * 2, said
    for first, last, _ in found:
        assert float(first) < 5 < 10 < float(last)
    assert "Under adc+wnoise+pcm (the paper's, drift not compensated) the chips are right" in said

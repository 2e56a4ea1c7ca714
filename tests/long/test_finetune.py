"""A whole study of fine-tuning: gradient steps with noise and without it."""

from pathlib import Path

import pandas as pd
import pytest

import bridge
from jaxcurv.storage.checksums import read_json
from tests.conftest import Command

pytestmark = pytest.mark.long


def test_noise_and_weights_change_the_network(
    command: Command, finished_run: Path, tmp_path: Path
) -> None:
    """A few steps of each variant move all weights, and no two variants alike."""
    flags = ("--finetune.profile", "wnoise", "--finetune.steps", "4", "--finetune.seeds", "1")
    where = ("--out", finished_run, "--finetune.out", tmp_path)
    result = command("finetune", "digits", *where, *flags, "--finetune.chips", "2")
    assert result.returncode == 0, result.stderr
    assert "less all alike, points" in result.stdout
    start, _ = bridge.weights.load_weights(finished_run / "weights.safetensors")
    named = read_json(tmp_path / "settings.json")["weights"]
    kernels = [start["conv1.weight"].numpy()]
    kernels += [
        bridge.weights.load_weights(tmp_path / path)[0]["conv1.weight"].numpy()
        for path in named.values()
    ]
    assert len({one.tobytes() for one in kernels}) == 1 + 6
    assert max(abs(one - kernels[0]).max() for one in kernels) < 0.5 * abs(kernels[0]).max()
    rows = pd.read_parquet(tmp_path / "finetune.parquet")
    assert len(rows) == (1 + 6) * 2

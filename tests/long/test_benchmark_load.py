"""The benchmark of many samples as a whole."""

import json
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.experiments.benchmarks.test_load import check_point

pytestmark = pytest.mark.long


def test_the_whole_command(command: Command, tmp_path: Path) -> None:
    small = {"width": 2, "classes": 12, "probes": 2, "batch-size": 8}
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    out, figures = tmp_path / "new" / "load.json", tmp_path / "figures"
    done = command(
        *("benchmark", "load", "--samples", "30", "10", "20", "20", *flags),
        *("--json", out, "--figures", figures),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert list(found["works"]) == ["score", "simulate"]
    for one in found["works"].values():
        assert [p["samples"] for p in one["points"]] == [10, 20, 30]
        for each in one["points"]:
            check_point(each, each["samples"])
    assert found["settings"]["profile"] == "adc+wnoise+pcm"
    assert {"python", "jax", "torch", "aihwkit", "jaxcurv"} <= found["versions"].keys()
    assert (figures / "load.png").exists()
    assert "score, 30 samples: " in done.stdout

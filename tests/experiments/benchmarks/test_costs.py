"""The measurement of what scores cost: what it computes, and the lines through its figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import costs
from experiments.benchmarks.costs import CostsBenchmark
from jaxcurv.storage.checksums import read_json
from tests.shallow_resnet import replace_resnet18

SETTINGS = CostsBenchmark(
    width=2, batch_size=4, classes=10, many_classes=12, image_size=8, repeats=2
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_resnet18(monkeypatch)


def test_lines_give_back_the_constants_that_made_them() -> None:
    """Two repeats, the second twice as slow."""
    ratios = {
        "gradient": 3.0,
        "finite_difference_few": 2.5 + 2 * 4.0,
        "finite_difference_many": 2.5 + 10 * 4.0,
        "hessian_vector_few": 5.0 + 2 * 3.0,
        "hessian_vector_many": 5.0 + 10 * 3.0,
        "gauss_newton_few": 2.0 + 9 * 1.5,
        "gauss_newton_many": 2.0 + 11 * 1.5,
        "low_rank_few": 6.0 + 2 * 4.5 + 2 * 1.25,
        "low_rank_many_dimensions": 6.0 + 9 * 4.5 + 2 * 1.25,
        "low_rank_many_probes": 6.0 + 2 * 4.5 + 10 * 1.25,
        "margin": 1.5,
        "margin_moments": 9.0,
    }
    found = costs.constants({name: [one, 2 * one] for name, one in ratios.items()}, SETTINGS)
    expected = {
        "gradient_norm": 3.0,
        "finite_difference_base": 2.5,
        "finite_difference_each": 4.0,
        "hessian_vector_base": 5.0,
        "hessian_vector_each": 3.0,
        "gauss_newton_base": 2.0,
        "gauss_newton_each": 1.5,
        "low_rank_base": 6.0,
        "low_rank_dimension": 4.5,
        "low_rank_probe": 1.25,
        "margin": 1.5,
        "margin_moments": 9.0,
    }
    assert found == {name: pytest.approx([one, 2 * one]) for name, one in expected.items()}


def test_the_command_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs.run(CostsBenchmark(**{**SETTINGS.measured(), "repeats": 2}, json=tmp_path / "costs.json"))
    report = read_json(tmp_path / "costs.json")
    for one in report["ratios"].values():
        assert 0 < one["lowest"] <= one["median"] <= one["highest"]
    assert report["constants"]["margin"] == report["ratios"]["margin"]
    assert report["settings"] == {**SETTINGS.measured(), "repeats": 2}
    assert {"jax", "python"} <= report["versions"].keys()
    printed = capsys.readouterr().out
    assert all(name in printed for name in report["constants"])


def test_contestants_compute_what_they_are_called() -> None:
    contestants = costs.make_contestants(SETTINGS)

    def score(name: str) -> Any:
        return contestants[name].run()

    few, many = (score(f"finite_difference_{which}")["score"] for which in ("few", "many"))
    assert (few.probes[0], many.probes[0]) == (2, 10)
    assert score("gradient") == {}
    columns = [score(f"gauss_newton_{which}")["score"].eigenvalues for which in ("few", "many")]
    assert [one.shape[1] for one in columns] == [9, 11]
    low = {
        name: score(f"low_rank_{name}")["score"]
        for name in ("few", "many_dimensions", "many_probes")
    }
    assert [one.eigenvalues.shape[1] for one in low.values()] == [2, 9, 2]
    assert [int(one.probes[0]) for one in low.values()] == [4, 11, 12]
    plain, noisy = score("margin"), score("margin_moments")
    assert plain.variance == {}
    np.testing.assert_allclose(plain.margin, noisy.margin, rtol=1e-4, atol=1e-6)
    assert np.all(noisy.variance["noise"] > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "counts must be at least 1"),
        ({"classes": 9}, "--classes must be at least 10"),
        ({"many_classes": 10}, "--many-classes must be more than --classes"),
    ],
)
def test_impossible_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostsBenchmark(**settings)

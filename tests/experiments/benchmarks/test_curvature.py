"""The benchmark and the comparison of estimators: what they compute; how long is left to them."""

import json
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.benchmarks import curvature, curvature_contestants, curvature_figures
from experiments.benchmarks.common import resident
from experiments.benchmarks.curvature import CurvatureBenchmark, Workload
from experiments.benchmarks.published_score import published_curvature
from experiments.studies import rank_correlation
from jaxcurv import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
)
from jaxcurv.costs import GRADIENT_NORM, forward_passes
from jaxcurv.engine import probe
from jaxcurv.estimators import Published, nominal_passes
from jaxcurv.storage.checksums import read_json, write_json
from tests.shallow_resnet import replace_resnet18

SETTINGS = CurvatureBenchmark(width=2, batch_size=4, image_size=8, probes=3, repeats=2)


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    """A network of one block and one thread: on a busy machine torch's threads mostly wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature_contestants, "cores", lambda: 1)
        patch.setattr(curvature, "cores", lambda: 1)
        replace_resnet18(patch)
        yield


@pytest.fixture(scope="module")
def workload() -> Workload:
    return curvature.make_workload(SETTINGS)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """Channels last -> channels first."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).copy())


# --- the published algorithm


def test_published_algorithm_gives_the_scores_of_the_estimator(workload: Workload) -> None:
    """The same network in both frameworks, the same signs."""
    batch = workload.batch(4)
    estimator = Published(batch_size=4, probes=3)
    key = jax.random.key(0)  # that of every contestant
    signs = np.stack(
        [
            np.asarray(probe("rademacher", key, jnp.asarray(batch.indices), n, (8, 8, 3)))
            for n in range(3)
        ]
    )
    assert workload.twin is not None
    forwards = []
    handle = workload.twin.register_forward_hook(lambda *_: forwards.append(1))
    scores = published_curvature(
        workload.twin,
        to_torch(batch.images),
        torch.from_numpy(batch.labels),
        step=estimator.step,
        probes=3,
        signs=to_torch(signs),
    )
    handle.remove()
    assert len(forwards) == 6  # both branches each probe
    expected = curvature_contestants._score(workload, batch, estimator)
    # A sample of which the network is certain has a score that float32 rounds by the batch's scale.
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert np.all(expected > 0)


def test_published_algorithm_draws_its_own_signs(workload: Workload) -> None:
    batch = workload.batch(4)
    images, labels = to_torch(batch.images), torch.from_numpy(batch.labels)
    assert workload.twin is not None

    def scores(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return published_curvature(
            workload.twin, images, labels, step=1e-3, probes=1, generator=generator
        )

    assert torch.equal(scores(0), scores(0))
    assert not torch.allclose(scores(0), scores(1), rtol=1e-3)


def test_published_algorithm_refuses_what_it_cannot_score(workload: Workload) -> None:
    images, labels = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    assert workload.twin is not None
    with pytest.raises(ValueError, match=r"signs must be \(2, 4, 3, 8, 8\); got \(1, 4, 3, 8, 8\)"):
        published_curvature(
            workload.twin, images, labels, step=1e-3, probes=2, signs=torch.ones(1, 4, 3, 8, 8)
        )
    training = torch.nn.Sequential(torch.nn.Dropout())
    with pytest.raises(ValueError, match="training mode"):
        published_curvature(training, images, labels, step=1e-3, probes=1)


# --- the benchmark


@pytest.fixture(scope="module")
def report(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a small run."""
    path = tmp_path_factory.mktemp("benchmark") / "report.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature, "make_workload", lambda settings: workload)  # compiled once
        assert curvature.run(replace(SETTINGS, json=path)) == 0
    return path


def test_json_has_the_ratios_and_what_they_come_from(report: Path) -> None:
    found = json.loads(report.read_text())
    contestants = found["contestants"]
    assert {name: one["passes"] for name, one in contestants.items()} == {
        "published, PyTorch": 12,
        "floor: n + 1 plain passes": 8,
        "FiniteDifference": 8,
        "HessianVector": 8,
        "HessianTrace": 8,
        "GaussNewton": 11,
        "LowRankGaussNewton": 27,
    }
    for one in contestants.values():
        ms = one["milliseconds"]
        assert 0 < ms["lowest"] <= ms["median"] <= ms["highest"]
        assert one["images_per_second"] == pytest.approx(4000 / ms["median"])
        assert one["fraction_of_peak"] is None
    for name in ("over_published", "of_floor", "gauss_newton_over_finite_difference"):
        ratio = found["ratios"][name]
        assert found[name] == ratio["median"]
        over, under = (contestants[side]["milliseconds"] for side in curvature.RATIOS[name])
        assert ratio["lowest"] <= ratio["median"] <= ratio["highest"]
        assert ratio["highest"] <= over["highest"] / under["lowest"] * (1 + 1e-9)
        assert ratio["lowest"] >= over["lowest"] / under["highest"] * (1 - 1e-9)
    assert found["settings"]["width"] == 2
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == {"cores": 1, "torch": 1}


def test_ratio_is_the_median_of_those_within_a_repeat() -> None:
    seconds = {"slow": [2.0, 40.0, 9.0], "fast": [1.0, 10.0, 3.0]}
    ratio = curvature._ratio(seconds, "slow", "fast")
    assert ratio == {"median": 3.0, "lowest": 2.0, "highest": 4.0}
    assert curvature._ratio(seconds, "absent", "fast") is None


def test_contestants_take_turns() -> None:
    order: list[str] = []
    timed = {name: curvature.Contestant(1, lambda name=name: order.append(name)) for name in "abc"}
    seconds = curvature.measure(timed, 4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(("factor", "code"), [(1e-3, 0), (1e3, 1)])
def test_regression_check(
    report: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    code: int,
) -> None:
    """Against an earlier run that was far slower, and one that was far faster."""
    earlier = read_json(report)
    monkeypatch.setattr(curvature, "measure_all", lambda *_: read_json(report))
    earlier |= {name: factor * earlier[name] for name in curvature.RATIOS}
    path = tmp_path / "earlier.json"
    write_json(path, earlier)
    assert curvature.run(replace(SETTINGS, baseline=path)) == code
    printed = " ".join(capsys.readouterr().out.split())
    assert ("no ratio is more than 10% below" in printed) == (code == 0)
    assert printed.count("slower: ") == 3 * code


def test_regression_of_a_tenth_is_still_allowed() -> None:
    earlier = dict.fromkeys(curvature.RATIOS, 2.0)
    assert not curvature.regressions(dict.fromkeys(curvature.RATIOS, 1.81), earlier)
    (line,) = curvature.regressions({**earlier, "of_floor": 1.78}, earlier)
    assert line == "of_floor was 2.000 and is 1.780, 11% less (10% is allowed)"
    (line,) = curvature.regressions({**earlier, "over_published": None}, earlier)
    assert line == "over_published was 2.000 and could not be measured now"
    assert not curvature.regressions(earlier, {**earlier, "over_published": None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no baseline at .*: write one with --json"),
        ("{", "is damaged"),
        ("{}", "carries no checksum"),
        ({"width": 4, "classes": 7}, "other settings: give --width 4 --classes 7"),
        ("another device", "was measured on a toaster, this is"),
    ],
)
def test_baseline_that_cannot_be_compared(
    report: Path, tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "earlier.json"
    earlier = read_json(report)
    if content == "another device":
        write_json(path, {**earlier, "device": "a toaster"})
    elif isinstance(content, dict):
        write_json(path, {**earlier, "settings": earlier["settings"] | content})
    elif content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        curvature.run(replace(SETTINGS, baseline=path))


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1 .*'repeats': 0"):
        CurvatureBenchmark(repeats=0)
    with pytest.raises(ValueError, match="classes at least 2; got 1"):
        CurvatureBenchmark(classes=1)


def test_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match="is a folder: give --json a file's name"):
        curvature.run(replace(SETTINGS, json=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match="choose another --figures"):
        curvature.run(replace(SETTINGS, figures=tmp_path / "file" / "figures"))


@pytest.mark.parametrize(
    ("estimator", "cost"),
    [
        (FiniteDifference(), 22),
        (FiniteDifference(probes=1), 4),
        (Published(batch_size=8), 22),
        (HessianVector(), 22),
        (HessianTrace(), 22),
        (HessianTrace(step=1e-3), 22),
        (GaussNewton(), 101),
        (LowRankGaussNewton(), 27),
        # The base gradient once more, in the lower precision.
        (HessianVector(precision="bfloat16"), 24),
        (GaussNewton("tensorfloat32"), 103),
        (LowRankGaussNewton(precision="bfloat16"), 29),
    ],
    ids=repr,
)
def test_cost_in_forward_passes(estimator: Any, cost: int) -> None:
    """As the estimators' docstrings have it, with 100 classes."""
    assert nominal_passes(estimator, 100) == cost


def test_cost_of_adaptive_probing_follows_the_probes_taken() -> None:
    adaptive = Adaptive(FiniteDifference(probes=5))
    assert nominal_passes(adaptive, 100) == 42
    # Each round after the first 20 probes computes the base gradient once more.
    assert nominal_passes(adaptive, 100, probes=32.5) == 42 + 2.5 * 12
    assert nominal_passes(Adaptive(HessianVector(5)), 100, probes=32.5) == 72
    assert nominal_passes(Adaptive(HessianVector(5, precision="bfloat16")), 100, probes=30) == 72
    assert nominal_passes(Adaptive(FiniteDifference()), 10, probes=100) == 42 + 8 * 22
    assert nominal_passes(Adaptive(FiniteDifference(probes=50)), 10) == 102
    # Three classes leave the random subspace two dimensions.
    assert nominal_passes(LowRankGaussNewton(), 3) == 15


def test_fraction_of_peak() -> None:
    assert curvature.fraction_of_peak("NVIDIA H200", "highest", 6.7e12) == pytest.approx(0.1)
    tf32 = curvature.fraction_of_peak("NVIDIA H100 80GB HBM3", "tensorfloat32", 49.5e12)
    assert tf32 == pytest.approx(0.1)
    # The PCIe card of the same name is slower.
    pcie = curvature.fraction_of_peak("NVIDIA H100 PCIe", "bfloat16", 37.8e12)
    assert pcie == pytest.approx(0.1)
    a100 = curvature.fraction_of_peak("NVIDIA A100-SXM4-40GB", "highest", 1.95e12)
    assert a100 == pytest.approx(0.1)
    assert curvature.fraction_of_peak("Tesla T4", "highest", 1e12) is None


def test_operations_of_a_forward_pass() -> None:
    """FLOPs are those of the convolutions, counted one by one, and a little more between them."""
    workload = curvature.make_workload(replace(SETTINGS, width=8))
    assert workload.twin is not None
    counted: list[float] = []

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        # Taps that fall on padding are multiplications by nothing.
        plane = torch.ones(1, 1, *inputs[0].shape[2:])
        taps = torch.nn.functional.conv2d(
            plane,
            torch.ones(1, 1, *layer.kernel_size),
            stride=layer.stride,
            padding=layer.padding,
        ).sum()
        counted.append(float(2 * len(output) * layer.in_channels * layer.out_channels * taps))

    convolutions = [m for m in workload.twin.modules() if isinstance(m, torch.nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in convolutions]
    batch = workload.batch(4)
    workload.twin(to_torch(batch.images))
    for handle in handles:
        handle.remove()
    assert len(counted) == 3
    assert 1 < curvature.forward_flops(workload, batch) / sum(counted) < 1.4


def test_rank_agreement_is_with_the_same_estimator_in_float32() -> None:
    def contestant(*scores: float, precision: Any = "highest") -> curvature.Contestant:
        return curvature.Contestant(1, lambda: np.array(scores), precision)

    agreed = curvature.rank_agreement(
        {
            "A": contestant(1, 2, 3, 4),
            "B": contestant(4, 3, 2, 1),
            "A, bfloat16": contestant(1, 3, 20, 21, precision="bfloat16"),
            "B, bfloat16": contestant(1, 3, 2, 4, precision="bfloat16"),
        }
    )
    assert agreed == {"A, bfloat16": pytest.approx(1), "B, bfloat16": pytest.approx(-0.8)}


# --- its figures


def test_sweep_and_its_figure(workload: Workload, tmp_path: Path) -> None:
    points = curvature_figures.Points(probes=(3,), batch_sizes=(), samples=())
    table = curvature_figures.sweep(workload, SETTINGS, points)
    names = ["published, PyTorch", "FiniteDifference", "HessianVector", "GaussNewton"]
    assert list(table["contestant"]) == names
    assert list(table["x"]) == [3] * 4
    assert (table["lowest"] > 0).all()
    assert table["median"].between(table["lowest"], table["highest"]).all()
    memory = table.head(4).assign(panel="memory", median=np.nan)  # a system that does not tell
    path = curvature_figures.draw(pd.concat([table, memory]), tmp_path / "cost.png", "a device")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(tmp_path / "cost.csv")) == 8


def test_resident_memory_is_this_process_s() -> None:
    before, _ = resident()
    with mmap.mmap(-1, 64_000_000) as block:  # new pages, whatever the heap has left
        block.write(bytes(len(block)))
        now, peak = resident()
    assert 60e6 < now - before < 80e6
    assert peak >= now


# --- rank correlation of the estimators


def test_rank_correlation_matrix_costs_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    names = [
        *rank_correlation.ESTIMATORS,
        *rank_correlation.ANOTHER_KEY,
        *rank_correlation.BY_PRODUCTS,
    ]
    scores = pd.DataFrame({name: random.normal(size=50) for name in names})
    reference = scores[rank_correlation.REFERENCE]
    scores["gradient_norm"], scores["loss"] = np.exp(reference), -reference
    scores["fd_h1e-3_adaptive_probes"] = [20, 40] * 25
    scores["correct"] = [True, False] * 25
    estimators = rank_correlation.ESTIMATORS | rank_correlation.ANOTHER_KEY
    costs = rank_correlation.costs_of(estimators, scores, classes=100)
    assert list(costs) == names
    first, later = (forward_passes(FiniteDifference(probes=n), 100) for n in (20, 10))
    assert costs["fd_h1e-3_adaptive"] == pytest.approx(first + later)  # one round on average
    assert costs["gauss_newton"] == forward_passes(GaussNewton(), 100)
    assert (costs["gradient_norm"], costs["loss"]) == (GRADIENT_NORM, 1)
    matrix = rank_correlation.rank_correlations(scores, names)
    assert matrix.at[rank_correlation.REFERENCE, "gradient_norm"] == pytest.approx(1)
    assert matrix.at["loss", rank_correlation.REFERENCE] == pytest.approx(-1)
    ranks = scores[["hessian_trace", "gauss_newton"]].rank().to_numpy()
    assert matrix.at["hessian_trace", "gauss_newton"] == pytest.approx(np.corrcoef(ranks.T)[0, 1])
    path = rank_correlation.draw(matrix, tmp_path / "rank_correlation.png", "rho")
    assert path.read_bytes().startswith(b"\x89PNG")
    kept = pd.read_csv(tmp_path / "rank_correlation.csv", index_col="score")
    np.testing.assert_allclose(kept, matrix)
    rank_correlation.show(matrix, matrix, costs, scores)
    printed = capsys.readouterr().out
    assert "25 correct" in printed
    assert printed.count("-1.0000") == 2


def test_rank_correlation_needs_a_trained_model(tmp_path: Path) -> None:
    from experiments.settings.presets import PRESETS

    with pytest.raises(FileNotFoundError, match=r"no trained model in .*: run train first"):
        rank_correlation.open_trained(PRESETS["digits"].experiment, tmp_path, None, limit=9)
    with pytest.raises(ValueError, match="limit must be at least 3"):
        rank_correlation.RankCorrelation(limit=2)

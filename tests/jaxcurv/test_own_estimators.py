"""An estimator of the user's own: in a batch, in a table, resumed, on two devices, and refused."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv import FiniteDifference, HessianVector, input_curvature, score_dataset
from jaxcurv.engine.norms import norm
from jaxcurv.estimators import BatchProblem, OwnEstimator, describe, nominal_passes
from tests.conftest import ROOT
from tests.refusals import refused

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(11, 6)).astype(np.float32)
LABELS = RNG.integers(0, 4, 11)
WEIGHTS = RNG.normal(size=(6, 4)).astype(np.float32)

SOURCE: Any = [
    {"image": image, "label": int(label), "index": index}
    for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))
]


def linear(params: Any, images: Any) -> Any:
    return images @ params


@dataclass(frozen=True)
class GradientPower:
    """|| grad L ||^power, without an error."""

    power: float = 2.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power must be positive; got {self.power}")

    def estimate(self, problem: BatchProblem) -> dict:
        return {"score": norm(problem.base_gradient) ** self.power}

    def forward_passes(self, classes: int) -> float:
        return 2.0


@dataclass(frozen=True)
class GaussianEquation1:
    """Eq. 1 with normal probes, written from the problem's functions alone."""

    step: float = 1e-3
    probes: int = 4

    def estimate(self, problem: BatchProblem) -> dict:
        x, base = problem.images, problem.gradient(problem.images)
        shifted = (
            problem.gradient(x + self.step * problem.probe(number, "gaussian"))
            for number in range(self.probes)
        )
        draws = jnp.stack([norm(gradient - base) for gradient in shifted])
        error = jnp.std(draws, axis=0, ddof=1) / self.probes**0.5
        return {"score": jnp.mean(draws, axis=0), "standard_error": error}

    def forward_passes(self, classes: int) -> float:
        return 2.0 * (self.probes + 1)


def score(estimator: Any, **changed: Any) -> Any:
    arguments = {"indices": np.arange(11), "key": KEY, "params": WEIGHTS, "estimator": estimator}
    return input_curvature(linear, IMAGES, LABELS, **(arguments | changed))


def table(estimator: Any, out: Path | None = None, **changed: Any) -> Any:
    estimators = {"curvature": FiniteDifference(probes=2), "mine": estimator}
    arguments = {"key": KEY, "params": WEIGHTS, "estimators": estimators, "batch_size": 4}
    return score_dataset(linear, SOURCE, out=out, **(arguments | changed))


def closed_form(power: float) -> np.ndarray:
    """|| W (p - e_y) ||^power of softmax regression, in float64."""
    logits = IMAGES.astype(np.float64) @ WEIGHTS
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.linalg.norm((p - np.eye(4)[LABELS]) @ WEIGHTS.T, axis=1) ** power


def test_the_closed_form_in_a_batch_and_in_a_table() -> None:
    assert isinstance(GradientPower(), OwnEstimator)
    found = score(GradientPower(3.0))
    np.testing.assert_allclose(found.score, closed_form(3.0), rtol=1e-5)
    assert np.isnan(found.standard_error).all()
    assert (found.measures, found.estimator) == ("GradientPower", GradientPower(3.0))
    rows = table(GradientPower(3.0))
    np.testing.assert_allclose(rows["mine"], closed_form(3.0), rtol=1e-5)
    assert rows["mine_standard_error"].isna().all()
    # The built-in one beside it is not touched.
    alone = table(None, estimators={"curvature": FiniteDifference(probes=2)})
    assert rows[alone.columns].equals(alone)


def test_equation_1_as_ones_own_is_the_built_in() -> None:
    mine, built_in = score(GaussianEquation1()), score(FiniteDifference(1e-3, 4, "gaussian"))
    np.testing.assert_allclose(mine.score, built_in.score, rtol=1e-3)
    np.testing.assert_allclose(mine.standard_error, built_in.standard_error, rtol=1e-2)
    rows = table(GaussianEquation1())
    np.testing.assert_allclose(rows["mine"], mine.score, rtol=1e-3)
    np.testing.assert_allclose(rows["mine_standard_error"], mine.standard_error, rtol=1e-2)


def test_it_is_compiled_once_for_all_batches_of_a_shape(caplog: pytest.LogCaptureFixture) -> None:
    with jax.log_compiles():
        table(GradientPower(1.25))
        table(GradientPower(1.25))
    # The first samples, whose checks come before all, and the batches are of four.
    compiled = [r for r in caplog.records if "compilation of jit(evaluate)" in r.message]
    assert len(compiled) == 1


@dataclass(frozen=True)
class Steep:
    """Whether the loss has a slope of more than 2."""

    def estimate(self, problem: BatchProblem) -> dict:
        return {"score": jnp.where(norm(problem.base_gradient) > 2, 1.0, 0.0)}

    def forward_passes(self, classes: int) -> float:
        return 2.0


def test_a_score_of_ones_own_may_be_0_without_a_warning() -> None:
    expected = closed_form(1.0) > 2
    assert 2 <= np.sum(~expected) < 11
    np.testing.assert_array_equal(score(Steep()).score, expected)
    np.testing.assert_array_equal(table(Steep())["mine"], expected)


HELD: dict[str, Any] = {"weights": None}
MODULE = nnx.Linear(6, 1, use_bias=False, rngs=nnx.Rngs(0))
GLOBAL = np.zeros(6, np.float32)


@dataclass(frozen=True)
class Holding:
    """grad L . w, of a vector w that it gets elsewhere than from its fields."""

    place: str
    array: ClassVar[Any] = None

    def estimate(self, problem: BatchProblem) -> dict:
        places = {
            "dictionary": lambda: HELD["weights"],
            "module": lambda: MODULE.kernel[:, 0],
            "in place": lambda: GLOBAL,
            "class": lambda: Holding.array,
            "numbers": lambda: jnp.stack([float(w) for w in HELD["weights"]]),
        }
        gradient = problem.gradient(problem.images)
        return {"score": gradient @ jnp.asarray(places[self.place]())}

    def forward_passes(self, classes: int) -> float:
        return 2.0


def hold(weights: np.ndarray) -> None:
    HELD["weights"] = weights
    MODULE.kernel[...] = jnp.asarray(weights)[:, None]
    GLOBAL[:] = weights
    Holding.array = jnp.asarray(weights)


@pytest.mark.parametrize("place", ["dictionary", "module", "in place", "class", "numbers"])
def test_arrays_that_changed_are_those_of_now(place: str) -> None:
    logits = IMAGES.astype(np.float64) @ WEIGHTS
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (p - np.eye(4)[LABELS]) @ WEIGHTS.T
    for weights in np.eye(6, dtype=np.float32)[[1, 4]]:
        hold(weights)
        found = score(Holding(place)), table(Holding(place))["mine"]
        for one in (found[0].score, found[1]):
            np.testing.assert_allclose(one, gradient @ weights, rtol=1e-4, atol=1e-6)


def test_a_table_that_was_begun_with_other_arrays_is_refused(tmp_path: Path) -> None:
    out, first = tmp_path / "scores.parquet", np.linspace(1, 2, 6, dtype=np.float32)
    hold(first)
    table(Holding("dictionary"), out, shard=(0, 2))
    hold(first * np.float32(1.01))
    with pytest.raises(ValueError, match=r"belongs to other settings \(own_scores differ\)"):
        table(Holding("dictionary"), out)
    hold(first)
    assert table(Holding("dictionary"), out).equals(table(Holding("dictionary")))


@dataclass(frozen=True)
class Remembering(Holding):
    """The same in a function that JAX remembers."""

    def estimate(self, problem: BatchProblem) -> dict:
        weighted = {"jit": JITTED, "checkpoint": CHECKPOINTED}[self.place]
        return {"score": weighted(problem.base_gradient)}


JITTED = jax.jit(lambda g: g @ HELD["weights"])
CHECKPOINTED = jax.checkpoint(lambda g: g @ HELD["weights"])


@pytest.mark.parametrize("call", [score, table])
@pytest.mark.parametrize("place", ["jit", "checkpoint"])
def test_arrays_that_jax_remembers_are_refused(place: str, call: Any) -> None:
    hold(np.eye(6, dtype=np.float32)[2])
    call(Remembering(place))
    hold(np.eye(6, dtype=np.float32)[3])
    with pytest.raises(ValueError, match=r"estimator Remembering's own jax\.jit .* leave that jit"):
        call(Remembering(place))


def test_an_interrupted_table_goes_on_and_belongs_to_its_settings(tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    table(GradientPower(), out, shard=(0, 2))
    assert not out.exists()
    with pytest.raises(ValueError, match=r"estimators"):
        table(GradientPower(3.0), out)
    finished = table(GradientPower(), out)
    np.testing.assert_allclose(finished["mine"].to_numpy(), closed_form(2.0), rtol=1e-5)
    assert table(GradientPower(), out).equals(finished)
    with pytest.raises(ValueError, match=r"estimators"):
        table(GaussianEquation1(), out)


def test_it_is_known_by_its_qualified_name_and_its_fields() -> None:
    name = f"{__name__}.GradientPower"
    assert describe(GradientPower(3.0)) == {"name": name, "fields": {"power": 3.0}}
    assert describe(HessianVector(3))["name"] == "HessianVector"
    assert nominal_passes(GradientPower(), 10) == 2


def test_on_two_devices_the_scores_are_the_same(tmp_path: Path) -> None:
    out, mine = tmp_path / "scores.npy", {"mine": GaussianEquation1(probes=2)}
    code = (
        "import sys, jax, numpy; from tests.jaxcurv.test_own_estimators import *\n"
        "assert jax.local_device_count() == 2\n"
        "scores = table(None, estimators={'mine': GaussianEquation1(probes=2)})['mine']\n"
        "numpy.save(sys.argv[1], scores.to_numpy())"
    )
    subprocess.run(
        [sys.executable, "-c", code, out],
        check=True,
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
    )
    one = table(None, estimators=mine)["mine"].to_numpy()
    np.testing.assert_allclose(np.load(out), one, rtol=1e-3)


@dataclass(frozen=True)
class Returns:
    """Whatever its rule makes of the problem."""

    rule: str

    def estimate(self, problem: BatchProblem) -> Any:
        x = problem.images
        return {
            "scalar": lambda: {"score": jnp.sum(x)},
            "images": lambda: {"score": x},
            "integers": lambda: {"score": problem.labels},
            "other": lambda: {"score": x[:, 0], "spread": x[:, 0]},
            "no score": lambda: {"standard_error": x[:, 0]},
            "array": lambda: x[:, 0],
            "infinite": lambda: {"score": x[:, 0] / 0},
            "mixed": lambda: {"score": x[:, 0] - jnp.mean(x[:, 0])},
            "placed": lambda: {"score": jax.random.normal(problem.key, x.shape[:1])},
        }[self.rule]()

    def forward_passes(self, classes: int) -> float:
        return 1.0


@dataclass(frozen=True)
class WithoutCost:
    def estimate(self, problem: BatchProblem) -> Any: ...


@dataclass
class Thawed:
    values: Any

    def estimate(self, problem: BatchProblem) -> Any: ...
    def forward_passes(self, classes: int) -> float: ...


@pytest.mark.parametrize("call", [score, table])
@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Returns("scalar"), r"Returns.estimate\(\) must return.*score is float32 \[\]"),
        (Returns("images"), r"for a batch of \d+, score is float32 \[\d+, 6\]"),
        (Returns("integers"), "score is int32"),
        (Returns("other"), r"at most a \"standard_error\"; got \['score', 'spread'\]"),
        (Returns("no score"), r"got \['standard_error'\]"),
        (Returns("array"), 'must return {"score": ...}.*got DynamicJaxprTracer'),
        (Returns("infinite"), "is not finite for .* index 0; check its estimate"),
        (Returns("mixed"), "must not mix samples"),
        (Returns("placed"), "random numbers from problem.probe"),
        (WithoutCost(), r"WithoutCost\(\), which lacks forward_passes"),
        (GradientPower, "an instance of a frozen dataclass"),
        (Thawed([1]), "Thawed must be a frozen dataclass"),
        (Returns(print), "fields are numbers, texts"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_what_is_no_estimator_is_refused(call: Any, estimator: Any, message: str) -> None:
    with refused(message):
        call(estimator)

"""What only an accelerator can show: precision, ranks, the scanned epoch, chips on it.

Where JAX and torch cannot both have it in one environment, run these in each: the tests of the
other are skipped, each with its reason. JAXCURV_REQUIRE_ACCELERATOR=1 in the environment makes a
failure of each skip, for machines that must have an accelerator for both.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch
from flax import nnx
from scipy import stats

import bridge
from experiments.runs.records import read_record
from jaxcurv import FiniteDifference, GaussNewton, HessianTrace, HessianVector, data, score_dataset
from jaxcurv.models.resnet import BasicBlock, ResNet
from jaxcurv.training import checkpoints, loop, steps
from jaxcurv.training.recipe import Recipe
from tests.conftest import SMALL, Command
from tests.kills import without

pytestmark = pytest.mark.gpu

SAMPLES = 128
NORMALISATION = data.Normalisation((0.3,), (0.35,))
PINNED = {
    "curvature": FiniteDifference(),
    "hessian_vector": HessianVector(),
    "hessian_trace": HessianTrace(),
    "gauss_newton": GaussNewton(),
}


def lack(reason: str) -> NoReturn:
    if os.environ.get("JAXCURV_REQUIRE_ACCELERATOR") == "1":
        pytest.fail(f"{reason}, and JAXCURV_REQUIRE_ACCELERATOR is 1")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def jax_accelerator() -> str:
    """The name of JAX's accelerator."""
    if jax.default_backend() == "cpu":
        lack(f"JAX {jax.__version__} sees no accelerator")
    return jax.devices()[0].device_kind


@pytest.fixture(scope="session")
def torch_device() -> str:
    if not torch.cuda.is_available():
        lack(f"torch {torch.__version__} sees no CUDA device")
    return "cuda"


@nnx.jit(static_argnames="dtype")
def build(dtype: Any) -> nnx.Module:
    """A ResNet of width 16, two blocks of it strided, with random weights."""
    return ResNet(
        BasicBlock,
        (1, 1, 1, 0),
        num_classes=10,
        stem="cifar",
        width=16,
        in_channels=1,
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )


def score(estimators: dict[str, Any]) -> pd.DataFrame:
    """Digits scored with the random network, whose softmax is far from certain."""
    model = build(jnp.float32)
    model.eval()
    digits = data.load("digits").test
    some = digits.take(np.arange(SAMPLES))
    return score_dataset(
        model,
        data.Normalised(some, NORMALISATION),
        key=jax.random.key(0),
        estimators=estimators,
        batch_size=64,
    )


def worst(scores: pd.DataFrame, reference: pd.DataFrame, column: str) -> float:
    """The largest error of a column, over its median."""
    errors = (scores[column] - reference[column]).abs().max()
    return float(errors / reference[column].abs().median())


ON_CPU = """
import sys
import jax
from tests.gpu import test_accelerator as here
assert jax.default_backend() == "cpu"
here.score(here.PINNED).to_parquet(sys.argv[1])
"""


@pytest.fixture(scope="module")
def on_cpu(jax_accelerator: str, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The same scores of a process that has no accelerator."""
    file = tmp_path_factory.mktemp("cpu") / "scores.parquet"
    subprocess.run(
        [sys.executable, "-c", ON_CPU, file],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )
    return pd.read_parquet(file)


def test_scores_have_the_precision_of_the_cpu_whatever_is_set(on_cpu: pd.DataFrame) -> None:
    coarse = {"coarse": HessianVector(precision="bfloat16")}
    plain = score(PINNED | coarse)
    for setting in ("highest", "bfloat16"):
        with jax.default_matmul_precision(setting):
            pd.testing.assert_frame_equal(score(PINNED | coarse), plain, rtol=1e-3)
    for name in ("hessian_vector", "hessian_trace", "gauss_newton", "gradient_norm", "loss"):
        assert worst(plain, on_cpu, name) < 1e-2, name
    # In bfloat16 it is seen: else the device had nothing to be kept from.
    reference = on_cpu.assign(coarse=on_cpu["hessian_vector"])
    of_pinned = worst(plain, on_cpu, "hessian_vector")
    assert worst(plain, reference, "coarse") > max(1e-3, 5 * of_pinned)


def test_scores_rank_as_on_the_cpu(on_cpu: pd.DataFrame) -> None:
    scores = score(PINNED)
    assert scores["index"].tolist() == on_cpu["index"].tolist()
    assert (scores["prediction"] == on_cpu["prediction"]).mean() >= 1 - 1 / SAMPLES
    for name, least in {
        "curvature": 0.999,  # a difference of gradients: it has the most rounding
        "hessian_vector": 0.9999,
        "hessian_trace": 0.9999,
        "gauss_newton": 0.9999,
        "gradient_norm": 0.9999,
    }.items():
        assert stats.spearmanr(scores[name], on_cpu[name]).statistic > least, name


@pytest.mark.usefixtures("jax_accelerator")
def test_the_scanned_epoch_trains_as_the_dispatched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = data.load("digits")
    train = data.read(digits.train, range(1000), description="train")
    validation = data.read(digits.test, range(300), description="validation")
    recipe = Recipe(
        epochs=3, batch_size=50, learning_rate=0.1, warmup_epochs=1.0, crop_padding=1, flip=False
    )
    scans = []
    scanned_epoch, dispatched_epoch = steps.scanned_epoch, steps.dispatched_epoch
    monkeypatch.setattr(loop, "scanned_epoch", lambda step: scans.append(1) or scanned_epoch(step))

    def fit(name: str) -> list[checkpoints.Epoch]:
        arguments = (build, train, validation, NORMALISATION, recipe)
        with jax.default_matmul_precision("highest"):
            return loop.fit(*arguments, seed=0, directory=tmp_path / name)

    scanned = fit("scanned")
    assert scans == [1]
    monkeypatch.setattr(loop, "scanned_epoch", dispatched_epoch)
    dispatched = fit("dispatched")
    assert scanned[-1].validation_accuracy > 0.6
    for ours, theirs in zip(scanned, dispatched, strict=True):
        # Rounding grows from step to step; another order or augmentation differs far more.
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.02)
    assert fit("scanned") == scanned  # read back, not trained again


def test_chips_on_the_device_fail_as_those_on_the_cpu(
    torch_device: str, finished_run: Path, command: Command, tmp_path: Path
) -> None:
    folder = without(finished_run, "simulate", tmp_path / "run")
    flags = ("--simulate.device", torch_device)
    result = command("simulate", "digits", *SMALL, *flags, "--out", folder)
    assert result.returncode == 0, result.stderr
    record = read_record(folder, "simulate")
    assert record is not None
    assert record["device"] == torch_device
    there, here = (pd.read_parquet(run / "predictions.parquet") for run in (folder, finished_run))
    both = there.merge(here, on=["profile", "chip", "fold", "index"], validate="one_to_one")
    assert len(both) == len(here) == len(there)
    same = (both["prediction_x"] == both["prediction_y"]).groupby(both["profile"]).mean()
    assert set(same.index) == set(bridge.chips.eight_profiles())
    assert same["ideal"] >= 0.99  # two logits may tie
    # The chip is programmed on the CPU, so it is the same one; converters amplify rounding.
    assert same.min() > 0.95, same


def test_noise_of_every_operation_is_alike_on_the_device(torch_device: str) -> None:
    """Its draws are other ones there, of the same spread."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.randn((10, 64), generator=generator) / 8)
    noise = bridge.chips.WeightNoise(sigma=0.05, drawn="per_mvm")
    chip = bridge.program(network, bridge.Profile(wnoise=noise), seed=0)
    digits = data.load("digits").test
    source = data.Normalised(digits.take(np.arange(300)), NORMALISATION)
    exact, here, there = (
        np.stack(bridge.predict(one, source, device=device)["logits"].to_numpy())
        for one, device in ((network, "cpu"), (chip, "cpu"), (chip, torch_device))
    )
    spread_here, spread_there = (here - exact).std(), (there - exact).std()
    assert spread_there == pytest.approx(spread_here, rel=0.1)
    assert spread_there > 0.05
    again = np.stack(bridge.predict(chip, source, device=torch_device)["logits"].to_numpy())
    np.testing.assert_allclose(again, there, rtol=1e-4, atol=1e-5)


def test_many_chips_in_jax_are_those_of_the_cpu(jax_accelerator: str) -> None:
    """In groups that the memory holds; predictions agree but where rounding moves a code."""
    samples = data.load("digits").test
    images = NORMALISATION.apply(data.read(samples, range(SAMPLES), description="read").images)
    labels = np.zeros(SAMPLES, int)
    model = build(jnp.float32)
    model.eval()
    keys = jax.random.split(jax.random.key(0), 8)
    profiles = {name: bridge.PROFILES[name] for name in ("wnoise+pcm", "adc+wnoise+pcm")}
    for name, profile in profiles.items():
        found = bridge.jax_chips.predict_chips(
            bridge.analog(model, None, profile, images), keys, (images, labels)
        )
        with jax.default_device(jax.devices("cpu")[0]):
            chip = bridge.analog(model, None, profile, images)
            weights = [chip.program(chip.params, key) for key in keys]
            tables = [bridge.jax_chips.predict(chip, one, (images, labels)) for one in weights]
        expected = pd.concat(tables, ignore_index=True)
        agreement = (found["prediction"] == expected["prediction"]).mean()
        assert agreement > (0.99 if profile.adc is None else 0.95), name

"""Vectors, signals, sequences, volumes, token ids on chips: calibration, prediction, refusals."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import PROFILES, Profile, Router, predict, program, score, to_jax
from bridge.chips import ADC, PCM, WeightNoise, layer_failures, layer_report, output_noise
from bridge.chips.images import as_tensor
from bridge.chips.programming import clipped_share
from tests.chips import TorchCopies

LABELS = np.arange(6) % 3
NOISY = Profile(ADC(), WeightNoise(drawn="per_mvm"), PCM())


def initialised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model.eval().requires_grad_(False)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.a, self.b = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.embedding(ids)).relu().mean(1))


class Sequences(nn.Module):
    """Batch first, `[batch, length, feature]`, as torch's transformers."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(features, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu().cumsum(1)[:, -1])


def signals(channels: int = 4) -> nn.Module:
    """`[batch, channel, length]`, as torch's convolutions."""
    return nn.Sequential(
        nn.Conv1d(channels, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(),
        nn.Linear(10, 3),
    )  # fmt: skip


def volumes() -> nn.Module:
    """`[batch, channel, depth, height, width]`, as torch's convolutions."""
    return nn.Sequential(
        nn.Conv3d(2, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 3)
    )


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


VECTORS, SIGNALS, SEQUENCES = normal(6, 7), normal(6, 4, 9), normal(6, 9, 4)
VOLUMES = normal(6, 2, 3, 4, 5)
IDS = np.random.default_rng(0).integers(0, 11, (6, 5)).astype(np.int32)

CASES: dict[str, tuple[Callable[[], nn.Module], np.ndarray, torch.Tensor, list[str]]] = {
    "vectors": (lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)), VECTORS,
                torch.tensor(VECTORS), []),
    "signals": (signals, SIGNALS, torch.tensor(SIGNALS), []),
    "signals left digital": (signals, SIGNALS, torch.tensor(SIGNALS), ["0"]),
    "square signals": (signals, SIGNALS[..., :4], torch.tensor(SIGNALS[..., :4]), []),
    "sequences": (Sequences, SEQUENCES, torch.tensor(SEQUENCES), []),
    "square sequences": (Sequences, SEQUENCES[:, :4], torch.tensor(SEQUENCES[:, :4]), []),
    "volumes": (volumes, VOLUMES, torch.tensor(VOLUMES), []),
    "cubes": (volumes, VOLUMES[..., :2, :2], torch.tensor(VOLUMES[..., :2, :2]), []),
    "tokens": (Tokens, IDS, torch.tensor(IDS), ["embedding"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_arrays_and_tensors_are_the_same_inputs(name: str) -> None:
    make, array, tensor, left = CASES[name]
    model = initialised(make())
    digital = model(tensor)
    pairs = [(one, int(label)) for one, label in zip(tensor, LABELS, strict=True)]
    rows = [{"image": one, "label": int(label), "index": number}
            for number, (one, label) in enumerate(zip(array, LABELS, strict=True))]  # fmt: skip
    data = TensorDataset(tensor, torch.tensor(LABELS))
    sources = [(array, LABELS), (jnp.asarray(array), LABELS), (tensor, LABELS), pairs, rows,
               data, DataLoader(data, batch_size=4)]  # fmt: skip
    chip = program(model, PROFILES["adc"], seed=0, calibration=array, digital_layers=left)
    for calibration in (jnp.asarray(array), tensor):
        other = program(
            model, PROFILES["adc"], seed=0, calibration=calibration, digital_layers=left
        )
        assert other.out_bounds == chip.out_bounds
    for source in sources:
        for what, wanted in ((model, digital), (chip, chip(tensor, range(6)))):
            logits = torch.tensor(np.stack(predict(what, source, batch_size=4)["logits"]))
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(chip(array, range(6)), chip(tensor, range(6)))
    torch.testing.assert_close(chip(array, range(6)), digital, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("name", CASES)
def test_noise_belongs_to_the_sample(name: str, engine: Any) -> None:
    make, array, _, left = CASES[name]
    model = initialised(make())
    settings: Any = {"calibration": array, "digital_layers": left, "engine": engine}
    chip = program(model, NOISY, seed=0, **settings)
    whole, alone = (predict(chip, (array, LABELS), batch_size=size) for size in (6, 1))
    np.testing.assert_allclose(
        np.stack(whole["logits"]), np.stack(alone["logits"]), rtol=1e-4, atol=1e-5
    )
    assert set(clipped_share(chip, array)) == set(chip.out_bounds)


@pytest.mark.parametrize("name", CASES)
def test_what_else_takes_inputs(name: str) -> None:
    make, array, tensor, left = CASES[name]
    model = initialised(make())
    chip = program(model, NOISY, seed=0, calibration=array, digital_layers=left)
    assert np.isfinite(layer_report(chip, model, array)["snr_db"]).all()
    settings: Any = {"calibration": array, "digital_layers": left}
    noise = output_noise(model, NOISY, (array, LABELS), **settings)
    same = output_noise(model, NOISY, (tensor, LABELS), **settings)
    assert (noise["variance"] > 0).all()
    np.testing.assert_allclose(noise["variance"], same["variance"], rtol=1e-5)
    assert len(layer_failures(model, NOISY, (array, LABELS), **settings)) >= 2
    routed = Router(model, chip, np.inf)(array)
    assert routed.logits.shape == (6, 3)


def network() -> nn.Module:
    return initialised(CASES["vectors"][0]())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("vectors", normal(6, 8), r"fails on inputs .* \(8,\).*vectors \[batch, feature\]"),
        ("vectors", normal(7), r"must be float32 images.*got an array float32 \(7,\)"),
        ("vectors", normal(6, 7).astype(np.float64), "got an array float64"),
        ("vectors", IDS, "fails on inputs torch.int64"),
        ("vectors", normal(2, 2, 2, 2, 2, 7), r"got an array float32 \(2, 2, 2, 2, 2, 7\)"),
        ("volumes", VOLUMES[:, 0], r"fails on images of 5 channels"),
        ("volumes", np.moveaxis(VOLUMES, 1, 4), r"fails on inputs .* \(3, 4, 5, 2\).*volumes"),
        ("vectors", normal(6, 0), "must be float32 images"),
        ("signals", SEQUENCES, r"fails on inputs torch.float32 of shape \(9, 4\)"),
        ("signals", torch.tensor(SEQUENCES), r"fails on inputs torch.float32 of shape \(9, 4\)"),
        ("signals", normal(6, 4), r"fails on inputs|not one row each"),
        ("sequences", SIGNALS, r"fails on inputs .* of shape \(4, 9\)"),
        ("tokens", IDS + 20, r"fails on inputs torch.int64 .*index out of range"),
        ("tokens", IDS.astype(np.float32), "fails on inputs torch.float32"),
        ("tokens", IDS.astype(np.uint8), "got an array uint8"),
        ("tokens", IDS[0], r"got an array int32 \(5,\)"),
        ("tokens", IDS[..., None], r"got an array int32 \(6, 5, 1\)"),
    ],
)  # fmt: skip
def test_wrong_layouts_are_refused(name: str, given: Any, message: str) -> None:
    make, _, _, left = CASES[name]
    model = initialised(make())
    with pytest.raises(ValueError, match=message):
        program(model, PROFILES["adc"], seed=0, calibration=given, digital_layers=left)
    with pytest.raises(
        ValueError, match=r"fails on i|must be|must have|one row each|no axis empty"
    ):
        predict(model, (given, np.zeros(len(given), int)))


def test_an_image_without_its_batch_or_channel_is_refused() -> None:
    model = initialised(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 3))
    )
    gray = normal(1, 8, 8)
    with pytest.raises(ValueError, match=r"fails on inputs|one row each"):
        program(model, PROFILES["adc"], seed=0, calibration=gray)
    with pytest.raises(ValueError, match=r"fails on inputs|one row each|must be"):
        predict(model, (gray, [0]))


def test_inputs_far_beyond_the_calibration_s_are_refused() -> None:
    chip = program(network(), PROFILES["adc"], seed=0, calibration=VECTORS)
    with pytest.raises(ValueError, match="image 0 reaches"):
        predict(chip, (100 * VECTORS, LABELS))


def test_a_mixture_of_kinds_is_refused() -> None:
    rows = [(VECTORS[0], 0), (np.arange(7, dtype=np.int32), 1)]
    with pytest.raises(ValueError, match="float32 images"):
        predict(network(), rows)


@pytest.mark.parametrize("shape", [(50, 16, 16, 3), (50, 256, 3), (50, 768)], ids=str)
def test_an_array_is_copied_once(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    order = (0, 3, 1, 2) if len(shape) == 4 else range(len(shape))
    for given in (array, array[::-1], np.asfortranarray(array), np.asarray(jnp.asarray(array))):
        before = given.copy()
        tracemalloc.start()
        with TorchCopies() as copies:
            found = as_tensor(given, "images")
        made = tracemalloc.get_traced_memory()[1] / array.nbytes + copies.largest / array.size
        tracemalloc.stop()
        assert made < 1.5
        assert found.is_contiguous()
        assert torch.equal(found, torch.tensor(before).permute(*order))
        found.zero_()
        assert np.array_equal(given, before)


def flattening(shape: tuple[int, ...]) -> nn.Module:
    return initialised(nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)))


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 6, 6), (3, 5, 8)])
def test_arrays_with_channels_first_are_told_once(shape: tuple[int, ...]) -> None:
    network, given = flattening(shape), normal(20, *shape)
    labels = network(torch.tensor(given)).argmax(1).numpy()
    chip = program(network, PROFILES["ideal"], seed=0)
    calls: list[Callable[[Any], Any]] = [
        lambda x: predict(network, (x, labels), batch_size=4).correct,
        lambda x: predict(chip, (x, labels), batch_size=4).correct,
        lambda x: score(network, x, labels).correct,
        lambda x: to_jax(network, x)[0] and np.array([True]),
        lambda x: chip(x, range(len(x))).argmax(1).numpy() == labels,
        lambda x: program(network, PROFILES["adc"], seed=0, calibration=x) and np.array([True]),
    ]
    for call in calls:
        with pytest.warns(
            UserWarning, match=r"looks like \[batch, channel.*\(0, 2, 3, 1\)"
        ) as said:
            call(given)
        assert len(said) == 1
        for cure in (given.transpose(0, 2, 3, 1), torch.tensor(given)):
            assert call(cure).all()


@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (3, 3, 3), (1, 28, 1), (3, 64, 3), (1, 64, 9), (6, 6, 8), (3, 32, 4)]
)
def test_arrays_with_channels_last_are_taken_silently(shape: tuple[int, ...]) -> None:
    predict(flattening(shape), (normal(4, *shape), np.zeros(4, int)))

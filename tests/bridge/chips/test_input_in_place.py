"""Networks that write into their input: each pass gets images of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, Router, coverage, output_noise, predict, program, to_jax
from bridge.chips import ADC, clipped_share, layer_report
from tests.chips import noisy

IMAGES = np.random.default_rng(0).random((40, 8, 8, 3), dtype=np.float32)
LABELS = np.zeros(40, int)
CALIBRATED = Profile(ADC())


class Normalises(nn.Module):
    """Takes the mean off its input, by way of `view` or `flatten`."""

    def __init__(self, *, in_place: bool, view: bool = True, learned: bool = False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 5)
            self.query = nn.Parameter(torch.randn(512)) if learned else None
        self.in_place, self.view = in_place, view
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            x -= 0.45
            x.div_(0.22)
        else:
            x = (x - 0.45) / 0.22
        x = self.conv(x)
        x = x.view(len(x), -1) if self.view else x.flatten(1)
        found: torch.Tensor = self.fc(x)
        return found if self.query is None else found + self.fc(self.query)


class Rectifies(nn.Module):
    """Begins with a ReLU."""

    def __init__(self, *, in_place: bool, view: bool = True, learned: bool = False):
        super().__init__()
        body = Normalises(in_place=False, view=view, learned=learned)
        self.first, self.body = nn.Hardtanh(0.2, 0.7, inplace=in_place), body
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(self.first(x))
        return found


KINDS = [Normalises, Rectifies]


def logits(model: Any, images: Any = IMAGES) -> np.ndarray:
    table = predict(model, (images, LABELS[: len(images)]), batch_size=16)
    return np.stack(table["logits"].to_numpy())


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_digital_predictions(kind: Callable[..., nn.Module], view: bool) -> None:
    images = IMAGES.copy()
    found = logits(kind(in_place=True, view=view), images)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(found, logits(kind(in_place=False, view=view)))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("profile", [PROFILES["ideal"], noisy("constant", 0.1), CALIBRATED])
def test_predictions_of_chips(profile: Profile, view: bool, learned: bool) -> None:
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    before = images.clone()
    chips = [
        program(
            Normalises(in_place=here, view=view, learned=learned), profile, seed=0, calibration=x
        )
        for here, x in ((True, images), (False, before.clone()))
    ]
    assert torch.equal(images, before)
    assert chips[0].out_bounds == chips[1].out_bounds
    np.testing.assert_array_equal(logits(chips[0]), logits(chips[1]))
    torch.testing.assert_close(chips[0](images, range(40)), chips[1](before, range(40)))
    assert torch.equal(images, before)


def test_tables_of_chips() -> None:
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    before = images.clone()
    tables = []
    for in_place in (False, True):
        model = Normalises(in_place=in_place)
        noise = program(model, noisy("constant", 0.1), seed=0)
        adc = program(model, CALIBRATED, seed=0, calibration=images)
        answer = Router(model, noise, threshold=-0.02)(images)
        tables.append(
            (
                layer_report(noise, model, images),
                output_noise(model, CALIBRATED, (IMAGES, LABELS), calibration=images),
                output_noise(model, noisy("constant", 0.1), (IMAGES, LABELS)),
                clipped_share(adc, images),
                answer.logits.tolist(),
                answer.routed.tolist(),
            )
        )
        assert torch.equal(images, before)
    for one, other in zip(*tables, strict=True):
        assert one.equals(other) if hasattr(one, "equals") else one == other


@pytest.mark.parametrize("kind", KINDS)
def test_networks_in_jax(kind: Callable[..., nn.Module]) -> None:
    model = kind(in_place=True)
    function, params = to_jax(model, IMAGES)
    np.testing.assert_allclose(function(params, IMAGES), logits(model), atol=1e-4)
    assert coverage(model, IMAGES)["layer"].nunique() == 2

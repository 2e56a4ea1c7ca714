"""Code between the layers that a chip's file knows again, though noise does not excite it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, load_chip, program, save_chip
from bridge.chips import Chip
from bridge.weights.files import load_weights, save_weights

BRIGHT = torch.ones(6, 3, 8, 8) * torch.linspace(-6, 9, 6)[:, None, None, None]


def positive(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def pooled(act: nn.Module) -> nn.Module:
    return positive(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3), act, nn.AdaptiveAvgPool2d(1)), nn.Flatten(), nn.Linear(8, 5)
        )
    )


def signal(act: nn.Module) -> nn.Module:
    return positive(
        nn.Sequential(
            *(nn.Conv1d(3, 8, 5), act, nn.AdaptiveAvgPool1d(1)), nn.Flatten(), nn.Linear(8, 5)
        )
    )


def vector(act: nn.Module) -> nn.Module:
    return positive(nn.Sequential(nn.Linear(64, 8), act, nn.Linear(8, 5)))


def saved(path: Path, model: nn.Module, inputs: torch.Tensor | None, **given: Any) -> Chip:
    chip = program(model, PROFILES["ideal"], seed=0, **given)
    if inputs is not None:
        chip(inputs, range(len(inputs)))
    save_chip(path, chip)
    return chip


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (pooled, BRIGHT),
        (pooled, BRIGHT[:, :, :, :5]),
        (signal, BRIGHT.flatten(2)[..., :40]),
        (vector, BRIGHT[:, 0].flatten(1)),
    ],
)
@pytest.mark.parametrize("bounded", [nn.ReLU6(), nn.Hardtanh(0.0, 4.0)])
def test_a_bound_that_smooth_inputs_reach(
    make: Callable[[nn.Module], nn.Module], inputs: torch.Tensor, bounded: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "chip.safetensors"
    saved(path, make(bounded), inputs)
    with pytest.raises(ValueError, match=r"other code\. On \w+ inputs .*was (ReLU6|Hardtanh)"):
        load_chip(path, make(nn.ReLU()))
    load_chip(path, make(bounded))


def test_a_bound_that_no_input_reaches_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    chip = saved(path, pooled(nn.ReLU6()), BRIGHT / 100)
    with pytest.warns(UserWarning, match=r"other layers: layer 1 was ReLU6.* and is ReLU\(\)"):
        back = load_chip(path, pooled(nn.ReLU()))
    assert torch.equal(back(BRIGHT / 100, range(6)), chip(BRIGHT / 100, range(6)))


def test_layers_that_do_nothing_now_are_not_named(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"

    def model(*between: nn.Module, momentum: float = 0.1) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.Sequential(*between)
        ).eval()

    class DropPath(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    saved(path, model(nn.Dropout(0.1), nn.ReLU(inplace=True), nn.Identity(), nn.Flatten()), BRIGHT)
    for other in (
        model(nn.ReLU(), nn.Flatten()),
        model(nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), momentum=0.01),
        model(nn.Identity(), nn.ReLU(), DropPath(), nn.Flatten(), nn.Dropout1d()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_chip(path, other)


class Reader(nn.Module):
    """Tokens, averaged over those that are no padding."""

    def __init__(self, pad: int | None, tokens: int = 30000):
        super().__init__()
        self.pad = pad
        self.embed, self.fc = nn.Embedding(tokens, 6), nn.Linear(6, 4)
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        there = torch.ones_like(x, dtype=torch.bool) if self.pad is None else x != self.pad
        found = self.fc(self.embed(x)) * there[..., None]
        return found.sum(1) / there.sum(1, keepdim=True).clamp(min=1)


def padded(pad: int, rows: int = 8, length: int = 12) -> torch.Tensor:
    """Token ids whose first two rows have no padding."""
    ids = torch.randint(7, 30000, (rows, length), generator=torch.Generator().manual_seed(0))
    for row in range(2, rows):
        ids[row, length - row :] = pad
    return ids


@pytest.mark.parametrize("pad", [0, 1, 29999])
def test_a_padding_mask_that_the_first_samples_do_not_need(pad: int, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    saved(path, Reader(pad), padded(pad), digital_layers=["embed"])
    with pytest.raises(
        ValueError, match=rf"other code\. On two inputs .*pad was {pad} and is None"
    ):
        load_chip(path, Reader(None))
    load_chip(path, Reader(pad))


def sentences(short: int) -> torch.Tensor:
    """Token ids as RoBERTa has them: each begins with 0 and ends with 2; `short` are padded."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 100, (64, 24), generator=generator)
    ids[:, 0], ids[:, -1] = 0, 2
    for row in range(60 - short, 60):
        ids[row, 20 - row % 4 :], ids[row, 20 - row % 4] = 1, 2
    return ids


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("short", [2, 4, 16])
def test_padding_that_is_not_the_most_frequent_id(short: int, side: str, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    ids = sentences(short) if side == "right" else sentences(short).flip(1)
    ids[1, 3:9] = 50  # repeated, and no padding
    saved(path, Reader(1, tokens=100), ids, digital_layers=["embed"])
    assert load_weights(path)[1]["code"]["inputs"]["often"] != 1 or short == 16
    with pytest.raises(ValueError, match="other code"):
        load_chip(path, Reader(None, tokens=100))
    load_chip(path, Reader(1, tokens=100))


def test_padding_that_an_embedding_names(tmp_path: Path) -> None:
    """No sample was padded yet."""
    path = tmp_path / "chip.safetensors"

    def reader(pad: int | None) -> nn.Module:
        model = Reader(pad, tokens=100)
        model.embed.padding_idx = 98
        return model

    saved(path, reader(98), sentences(0).clamp(max=97), digital_layers=["embed"])
    with pytest.raises(ValueError, match="other code"):
        load_chip(path, reader(None))
    load_chip(path, reader(98))


class Capped(nn.Module):
    """A bound that no words of its own tell."""

    def __init__(self, bound: float):
        super().__init__()
        self.bound = bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-self.bound, self.bound)


def opposed(act: nn.Module, one: int, other: int) -> nn.Module:
    """Filters that answer where one colour is high and another low, and to no gray.

    Their answers are 1.8 times the colours, and reach a bound where all of a kernel is saturated.
    """
    model = pooled(act)
    weight = model[0].weight.data
    for channel in range(weight.shape[1]):
        if channel not in (one, other):
            weight[:, channel] = 0
    weight[:4, one], weight[:4, other] = 0.1, -0.1
    weight[4:, one], weight[4:, other] = -0.1, 0.1
    model[0].bias.data.zero_()
    return model


COLOURS = torch.full((6, 3, 8, 8), -4.0)
COLOURS[:3, 0] = COLOURS[2:5, 1] = COLOURS[4:, 2] = 4.0


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("seen", [True, False])
def test_a_bound_that_colours_reach(one: int, other: int, seen: bool, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    bounds = (nn.ReLU6(), Capped(6.0)) if seen else (nn.Hardtanh(0.0, 1.6), Capped(1.6))
    for bounded, free in zip(bounds, (nn.ReLU(), Capped(100.0)), strict=True):
        saved(path, opposed(bounded, one, other), COLOURS if seen else None)
        with pytest.raises(ValueError, match=r"other code\. On four inputs "):
            load_chip(path, opposed(free, one, other))
        load_chip(path, opposed(bounded, one, other))


def test_attributes_of_one_s_own_layers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    saved(path, pooled(Capped(1e6)), BRIGHT)
    with pytest.warns(UserWarning, match=r"layers: 1\.bound was 1000000\.0 and is 100000\.0\."):
        load_chip(path, pooled(Capped(1e5)))
    tensors, header = load_weights(path)
    del header["code"]["attributes"]  # as files of earlier versions
    save_weights(path, tensors, header)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_chip(path, pooled(Capped(1e5)))


def test_attributes_that_a_run_sets_are_not_named(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.drop_rate, self.kind = 0, 0.1, "a/path.pt"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x

    saved(path, pooled(Counting()), BRIGHT, engine="aihwkit")
    other = pooled(Counting())
    other[1].drop_rate, other[1].kind = 0.2, "another/path.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_chip(path, other)


def test_files_with_one_ramp_are_still_compared(tmp_path: Path) -> None:
    """Those of the version before."""
    path = tmp_path / "chip.safetensors"
    chip = program(pooled(nn.ReLU6()), Profile(), seed=0)
    like = {"shape": [3, 8, 8], "floating": True, "low": -6.0, "high": 9.0, "ramp": True}
    chip.analog.inputs_seen = like
    save_chip(path, chip)
    assert len(load_weights(path)[1]["code"]["logits"]) == 2
    load_chip(path, pooled(nn.ReLU6()))
    with pytest.raises(ValueError, match=r"other code\. On two inputs "):
        load_chip(path, pooled(nn.ReLU()))


def test_a_padding_mask_of_a_chip_that_has_not_run(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    saved(path, Reader(0), None, digital_layers=["embed"])
    with pytest.raises(ValueError, match="other code"):
        load_chip(path, Reader(None))


def test_values_that_are_missing_leave_the_range(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"

    class Filled(nn.Module):
        def __init__(self, fill: float):
            super().__init__()
            self.fc, self.fill = nn.Linear(4, 3), fill
            positive(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.nan_to_num(self.fill).clamp(max=5))

    inputs = torch.linspace(0, 7, 12).reshape(3, 4)
    inputs[2, 1] = torch.nan
    saved(path, Filled(0.0), inputs)
    like = load_weights(path)[1]["code"]["inputs"]
    assert (like["low"], like["high"]) == (0.0, 7.0)


def test_files_with_two_inputs_of_noise_are_still_compared(tmp_path: Path) -> None:
    """Those of earlier versions."""
    path = tmp_path / "chip.safetensors"
    chip = program(pooled(nn.ReLU()), Profile(), seed=0)
    like = {"shape": [3, 8, 8], "floating": True, "low": -1.0, "high": 1.0}
    chip.analog.inputs_seen = like
    save_chip(path, chip)
    tensors, header = load_weights(path)
    assert header["code"]["inputs"] == like
    save_weights(path, tensors, header)
    load_chip(path, pooled(nn.ReLU()))
    with pytest.raises(ValueError, match="other code"):
        load_chip(path, pooled(nn.Tanh()))

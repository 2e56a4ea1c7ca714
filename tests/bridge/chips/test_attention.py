"""PyTorch's packed attention as linear layers: equal outputs, and its projections on tiles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bridge.chips import weight_moments
from bridge.chips.attention import PlainAttention
from bridge.chips.layers import layer_report
from bridge.chips.prediction import predict
from bridge.chips.profiles import PROFILES
from bridge.chips.programming import program
from bridge.chips.tiles import named_layers
from tests.torch_networks import made

PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


def attention(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, **settings).eval()


def inputs(batch_first: bool, width: int = 8) -> torch.Tensor:
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
    return x if batch_first else x.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": PADDING},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": CAUSAL < 0, "key_padding_mask": PADDING, "need_weights": False},
        {"attn_mask": torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(2))},
    ],
    ids=["weights", "no weights", "by head", "padding", "causal", "both", "by head and sample"],
)
def test_outputs_and_weights_are_pytorch_s(batch_first, bias, call):
    theirs = attention(batch_first=batch_first, bias=bias)
    x = inputs(batch_first)
    found = PlainAttention(theirs)(x, x, x, **call)
    for ours, expected in zip(found, theirs(x, x, x, **call), strict=True):
        if expected is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_keys_and_values_of_other_widths_and_one_sample():
    theirs = attention(kdim=6, vdim=4, batch_first=True)
    q, k, v = inputs(True), inputs(True, 6), inputs(True, 4)
    plain = PlainAttention(theirs)
    torch.testing.assert_close(plain(q, k, v)[0], theirs(q, k, v)[0], rtol=1e-5, atol=1e-6)
    found, weights = plain(q[0], k[0], v[0])
    expected, their_weights = theirs(q[0], k[0], v[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, their_weights, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return made("TransformerEncoder")[0]


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, np.ndarray]:
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return images, np.arange(6)


def test_all_four_projections_are_on_tiles(encoder, pairs):
    chip = program(encoder, PROFILES["ideal"], seed=0)
    paths = {f"encoder.layers.0.self_attn.{one}_proj" for one in ("q", "k", "v", "out")}
    assert paths <= set(named_layers(chip.analog))
    logits = np.stack(predict(chip, pairs)["logits"].to_numpy())
    with torch.no_grad():
        expected = encoder(pairs[0]).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert type(encoder.encoder.layers[0].self_attn) is nn.MultiheadAttention


@pytest.mark.parametrize("name", ["pcm", "adc+wnoise+pcm"])
def test_both_engines_agree_and_no_sample_depends_on_its_batch(encoder, pairs, name):
    images, _ = pairs
    chips = {
        engine: program(encoder, PROFILES[name], seed=0, calibration=images, engine=engine)
        for engine in ("fast", "aihwkit")
    }
    found = {engine: np.stack(predict(one, pairs)["logits"]) for engine, one in chips.items()}
    assert np.mean(np.abs(found["fast"] - found["aihwkit"]) > 1e-4) < 0.05  # rounding edges
    alone = chips["fast"](images[3:4], [3]).numpy()
    np.testing.assert_allclose(alone[0], found["fast"][3], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert np.abs(found["fast"] - encoder(images).numpy()).max() > 1e-3


def test_moments_have_pytorch_s_names(encoder):
    found = weight_moments(encoder, PROFILES["pcm"])
    packed = found["encoder.layers.0.self_attn.in_proj_weight"]
    assert packed.mean.shape == (48, 16)
    assert not any("q_proj" in name for name in found)
    parts = encoder.encoder.layers[0].self_attn.in_proj_weight.detach().split(16)
    for number, part in enumerate(parts):
        alone = nn.Sequential(nn.Linear(16, 16)).eval().requires_grad_(False)
        alone[0].weight.copy_(part)
        expected = weight_moments(alone, PROFILES["pcm"])["0.weight"]
        rows = slice(16 * number, 16 * number + 16)
        assert torch.equal(packed.mean[rows], expected.mean)
        assert torch.equal(packed.variance[rows], expected.variance)


def test_the_report_of_layers_has_the_projections(encoder, pairs):
    chip = program(encoder, PROFILES["pcm"], seed=0)
    table = layer_report(chip, encoder, pairs[0]).set_index("layer")
    assert np.isfinite(table.loc["encoder.layers.0.self_attn.v_proj", "snr_db"])


def test_attention_may_stay_digital(encoder):
    path = "encoder.layers.0.self_attn"
    chip = program(encoder, PROFILES["ideal"], seed=0, digital_layers=[path])
    assert not any(name.startswith(path) for name in named_layers(chip.analog))


def test_a_projection_may_stay_digital(encoder, pairs):
    path = "encoder.layers.0.self_attn.k_proj"
    chip = program(encoder, PROFILES["pcm"], seed=0, digital_layers=[path])
    assert path not in named_layers(chip.analog)
    assert path.replace("k_proj", "q_proj") in named_layers(chip.analog)
    found = weight_moments(encoder, PROFILES["pcm"], digital_layers=[path])
    mean = found["encoder.layers.0.self_attn.in_proj_weight"].mean
    assert (mean[16:32] == 0).all()
    assert (mean[:16] != 0).any()


def test_moments_of_projections_of_their_own():
    model = nn.ModuleDict({"attn": attention(kdim=6, vdim=4), "fc": nn.Linear(8, 2)}).eval()
    found = weight_moments(model, PROFILES["pcm"])
    shapes = {name: tuple(one.mean.shape) for name, one in found.items()}
    assert shapes == {
        "attn.q_proj_weight": (8, 8),
        "attn.k_proj_weight": (8, 6),
        "attn.v_proj_weight": (8, 4),
        "attn.out_proj.weight": (8, 8),
        "fc.weight": (2, 8),
    }


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_rows_of_its_own_are_refused_by_name(settings):
    model = nn.ModuleDict({"attn": attention(**settings), "fc": nn.Linear(8, 2)}).eval()
    with pytest.raises(ValueError, match=r"layer attn \(MultiheadAttention\) adds rows"):
        program(model, PROFILES["ideal"], seed=0)


class Asking(nn.Module):
    """Attention between layers, by code that looks at what its layers are and have."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_bias is not None:
                x = x.to(layer.in_proj_weight.dtype)
                x = x + layer(x, x, x)[0]
            else:
                x = layer(x)
        return x.mean(1)


def clamp(layer: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.clamp(-0.1, 0.1)


def hooked(model: nn.Module) -> None:
    """As code does that hooks every linear layer: PyTorch never calls the one in attention."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(clamp)


def stale(model: nn.Module) -> None:
    """A mask of `out_proj` is never applied by PyTorch, which computes with what is there."""
    prune.identity(model.at.out_proj, "weight")
    model.at.out_proj.weight_orig.data.mul_(3)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "as it is": lambda model: None,
    "hooks of every linear layer": hooked,
    "a stale mask": stale,
    "packed weights pruned": lambda model: prune.l1_unstructured(model.at, "in_proj_weight", 0.5),
    "a hook": lambda model: model.at.register_forward_hook(lambda m, i, o: (2 * o[0], o[1])),
    "packed weights parametrized": lambda model: nn.utils.parametrize.register_parametrization(
        model.at, "in_proj_weight", Doubled()
    ),
}


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("name", CHANGES)
def test_code_around_attention_runs_as_in_pytorch(name, engine):
    torch.manual_seed(0)
    model = Asking().eval()
    CHANGES[name](model)
    model.eval()
    x = inputs(True)
    chip = program(model, PROFILES["ideal"], seed=0, engine=engine)
    torch.testing.assert_close(chip(x, range(2)), model(x), rtol=1e-4, atol=1e-5)
    noisy = program(model, PROFILES["adc+pcm"], seed=0, calibration=x.detach(), engine=engine)
    assert (noisy(x, range(2)) - model(x)).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_signal_s_convolution_may_be_weight_normed():
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 4, 3)), nn.Flatten(), nn.Linear(24, 2))
    model.eval()[0].weight_g.data.mul_(2)
    x = torch.randn(2, 3, 8)
    chip = program(model, PROFILES["ideal"], seed=0)
    torch.testing.assert_close(chip(x, range(2)), model(x), rtol=1e-4, atol=1e-5)

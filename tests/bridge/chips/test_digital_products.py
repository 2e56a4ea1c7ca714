"""Products that no tile computes stay digital and are told; what is no product stays digital."""

import re
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bridge.chips import telling
from bridge.chips.coverage import coverage
from bridge.chips.files import load_chip, save_chip
from bridge.chips.prediction import predict
from bridge.chips.profiles import PROFILES
from bridge.chips.programming import program
from bridge.chips.tiles import named_layers

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = (IMAGES, np.arange(4) % 3)


@pytest.fixture(autouse=True)
def told_again() -> None:
    telling.warn_once.cache_clear()


class Last(nn.Module):
    """The last output of a recurrent layer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x.mean(1))[0][:, -1]


class Scaled(nn.Module):
    """Bare parameters, as of LayerScale and position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gamma * x


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.LazyLinear(3))
    if isinstance(layer, Last):
        model = nn.Sequential(layer, nn.Linear(8, 3))
    else:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, *head)
    model.eval()(IMAGES)
    return model


PRODUCTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), "layer 1 (grouped)"),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), "layer 1 (grouped)"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), "layer 1 (transposed)"),
    "reflected": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        "layer 1 (padded by reflect)",
    ),
    "uneven": (
        lambda: nn.Conv2d(4, 4, 2, padding="same"),
        "layer 1 (padded by one more on one side)",
    ),
    "recurrent": (Last, "layer 0.rnn (recurrent)"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_that_no_tile_computes_is_digital_and_told_once(name):
    make, told = PRODUCTS[name]
    model = network(make())
    path = re.search(r"layer (\S+)", told)[1]
    chip = program(model, PROFILES["ideal"], seed=0)
    assert chip.digital_layers == (path,)
    assert path not in named_layers(chip.analog)
    with pytest.warns(UserWarning, match=re.escape(told)) as record:
        found = predict(chip, PAIRS)
    assert any("multiply-accumulates" in str(one.message) for one in record)
    with torch.no_grad():
        expected = model(IMAGES).numpy()
    np.testing.assert_allclose(np.stack(found["logits"]), expected, rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*multiply-accumulates")
        predict(program(model, PROFILES["pcm"], seed=1), PAIRS)
    with pytest.raises(ValueError, match=re.escape(told)):
        program(model, PROFILES["ideal"], seed=0, strict=True)


def test_the_share_is_that_of_the_arithmetic():
    """3 x 3 x 3 x 4 x 64 MACs, 3 x 3 x 1 x 4 x 36 of the depthwise one, 144 x 3 of the last."""
    model = network(nn.Conv2d(4, 4, 3, groups=4))
    share = 9 * 4 * 36 / (27 * 4 * 64 + 9 * 4 * 36 + 144 * 3)
    with pytest.warns(UserWarning, match=f"digital, with {share:.0%} of"):
        predict(program(model, PROFILES["ideal"], seed=0), PAIRS)


def test_a_view_behind_a_digital_layer_needs_no_other_images():
    """The share is counted with kernels that may keep the channels last."""

    class Flat(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    layers = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 8, 1), Flat()
    model = nn.Sequential(*layers, nn.Linear(512, 4)).eval()
    images = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)
    chip = program(model, PROFILES["ideal"], seed=0)
    with pytest.warns(UserWarning, match="digital, with .* of the network's"):
        found = np.stack(predict(chip, (images, np.arange(3)))["logits"])
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(8), nn.PReLU(4), Scaled()],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_no_product_stays_digital_without_a_word(layer):
    model = network(layer)
    chip = program(model, PROFILES["ideal"], seed=0, strict=True)
    assert chip.digital_layers == ()
    found = np.stack(predict(chip, PAIRS)["logits"])
    with torch.no_grad():
        np.testing.assert_allclose(found, model(IMAGES).numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_named_is_not_told_and_not_refused():
    model = network(nn.ConvTranspose2d(4, 4, 3))
    chip = program(model, PROFILES["ideal"], seed=0, digital_layers=["1"], strict=True)
    predict(chip, PAIRS)
    assert chip.digital_layers == ("1",)


class Quantised(nn.Module):
    """A linear layer of 8-bit weights that are buffers, as a user's own."""

    def __init__(self, inputs: int = 36, floating: bool = False):
        super().__init__()
        weight = torch.randint(-127, 128, (6, inputs), generator=torch.Generator().manual_seed(0))
        self.register_buffer("wq", weight.float() if floating else weight.to(torch.int8))
        self.register_buffer("scale", torch.tensor(0.01))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.wq.float() * self.scale, self.bias)


class Fixed(nn.Module):
    """What `compute` makes of an input and a tensor that is no parameter."""

    def __init__(self, kept: torch.Tensor, compute: Callable, attribute: bool = False):
        super().__init__()
        if attribute:
            self.kept = kept
        else:
            self.register_buffer("kept", kept)
        self.compute = compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(x, self.kept)


def between(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.LazyLinear(3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, *head).eval()  # of [batch, 4, 6, 6]
    model(IMAGES)
    return model


RAND = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
FIXED = {
    "int8": lambda: nn.Sequential(nn.Flatten(2), Quantised()),
    "floating": lambda: nn.Sequential(nn.Flatten(2), Quantised(floating=True)),
    "an attribute": lambda: nn.Sequential(Fixed(RAND, torch.matmul, attribute=True)),
    "a resampling matrix": lambda: nn.Sequential(Fixed(RAND, lambda x, m: m @ x)),
    "a blur kernel": lambda: nn.Sequential(
        Fixed(torch.ones(4, 1, 3, 3) / 9, lambda x, k: F.conv2d(x, k, groups=4))
    ),
    "prototypes": lambda: nn.Sequential(Fixed(RAND, torch.cdist)),
}
NO_PRODUCTS = {
    "a position table": lambda: Fixed(RAND, torch.add),
    "normalisation": lambda: Fixed(RAND, lambda x, m: (x - m.mean()) / m.std()),
    "a mask": lambda: Fixed(RAND > 0.5, lambda x, m: x.masked_fill(m, 0)),
    "rotary angles": lambda: Fixed(RAND, lambda x, m: x * m.cos() + x.flip(-1) * m.sin()),
    "relative positions": lambda: Fixed(
        torch.arange(6) % 4,
        lambda x, m: x + (F.one_hot(m, 4).float() @ torch.ones(4, 6))[m],
    ),
    "a bias of attention": lambda: Fixed(
        RAND, lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m)
    ),
    "an order": lambda: Fixed(torch.randperm(6), lambda x, m: x[..., m]),
    "a codebook": lambda: Fixed(RAND, lambda x, m: F.embedding((x > 0).sum(-1) % 6, m)),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_product_with_a_buffer_is_told_and_digital(name):
    model = between(FIXED[name]())
    kept = "1.1" if isinstance(model[1][-1], Quantised) else "1.0"
    with pytest.warns(UserWarning, match=rf"multiplies with {kept}\..* matrices: digital"):
        predict(program(model, PROFILES["wnoise"], seed=0), PAIRS)
    strict = program(model, PROFILES["ideal"], seed=0, strict=True)
    with pytest.raises(ValueError, match=rf"multiplies with {kept}\..*digital_layers=\['{kept}'"):
        predict(strict, PAIRS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(program(model, PROFILES["ideal"], seed=0, digital_layers=["1"], strict=True), PAIRS)


@pytest.mark.parametrize("name", NO_PRODUCTS)
def test_buffers_of_other_kinds_are_not_told(name):
    model = between(NO_PRODUCTS[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(program(model, PROFILES["ideal"], seed=0, strict=True), PAIRS)


def test_a_buffer_of_the_network_itself_has_its_share_and_can_be_named():
    """40 of the 8 x 5 linear layer, 64 of the buffer's 8 x 8."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 5)
            self.register_buffer("turn", torch.eye(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x @ self.turn)

    x, model = torch.randn(4, 8), Turned().eval()
    with pytest.warns(UserWarning, match=f"multiplies with turn, .* with {64 / 104:.0%} of"):
        program(model, PROFILES["ideal"], seed=0)(x, range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program(model, PROFILES["ideal"], seed=0, digital_layers=["turn"])(x, range(4))


GLOBAL = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
HELD: dict[str, Callable[[], nn.Module]] = {
    "NumPy's array": lambda: Holding(GLOBAL.numpy(), lambda m: torch.from_numpy(m)),
    "numbers": lambda: Holding(GLOBAL.tolist(), lambda m: torch.tensor(m)),
    "a list of tensors": lambda: Holding([GLOBAL], lambda m: m[0].T),
    "a global": lambda: Holding(None, lambda _: 2 * GLOBAL),
}


class Holding(nn.Module):
    """Multiplies its input with a matrix that is neither a parameter, a buffer nor an attribute."""

    def __init__(self, held: object, matrix: Callable) -> None:
        super().__init__()
        self.fc, self.held, self.matrix = nn.Linear(8, 5), held, matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x @ self.matrix(self.held))


@pytest.mark.parametrize("name", HELD)
def test_fixed_matrices_that_the_network_does_not_list_are_told_as_coverage_has_them(name):
    model, x = HELD[name]().eval(), torch.randn(4, 8)
    table = coverage(model, x).set_index("place")
    assert table.loc["digital", "macs"] == 64
    told = f"with a tensor or array that it does not list, .* with {64 / 104:.0%} of.*register_buf"
    with pytest.warns(UserWarning, match=told):
        program(model, PROFILES["ideal"], seed=0)(x, range(4))
    strict = program(model, PROFILES["ideal"], seed=0, strict=True)
    with pytest.raises(ValueError, match="with a tensor or array that it does not list"):
        strict(x, range(4))


def test_a_hook_with_a_copy_of_a_weight_is_told():
    model, x = nn.Sequential(nn.Linear(8, 5)).eval(), torch.randn(4, 8)
    copy = model[0].weight.detach().clone()
    model[0].register_forward_hook(lambda layer, args, output: args[0] @ copy.T)
    with pytest.warns(UserWarning, match="with a tensor or array that it does not list"):
        program(model, PROFILES["ideal"], seed=0)(x, range(4))


@pytest.mark.parametrize("scale", [2.0, np.float32(2), torch.tensor(2.0), torch.rand(8)])
def test_numbers_and_scales_that_the_network_does_not_list_are_not_told(scale):
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.held = nn.Linear(8, 5), [scale]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.held[0] * x @ torch.eye(8))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program(Scaling().eval(), PROFILES["ideal"], seed=0, strict=True)(
            torch.randn(4, 8), range(4)
        )


def test_a_bilinear_layer_has_its_share_and_a_row_of_coverage():
    """8 x 4 multiply-accumulates of the linear layer, 3 x 50 x 4 x 4 of the other."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.pair = nn.Linear(8, 4), nn.Bilinear(4, 4, 50)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc(x).tanh()
            pair = self.pair(h[:, None].expand(-1, 3, -1), h[:, None].expand(-1, 3, -1) ** 2)
            return pair.mean(1)

    model, x = Two().eval(), torch.randn(4, 8)
    table = coverage(model, x).set_index("layer")
    assert table.loc["pair", ["weights", "macs", "place", "reason"]].tolist() == [
        *("pair.weight", 2400, "digital", "of two inputs")
    ]
    assert table.loc["fc", "macs"] == 32
    with pytest.warns(UserWarning, match=rf"pair \(of two inputs\).* {2400 / 2432:.0%} of"):
        program(model, PROFILES["ideal"], seed=0)(x, range(4))


def test_a_chip_s_file_has_what_stayed_digital(tmp_path):
    model = network(nn.Conv2d(4, 4, 3, groups=2))
    chip = program(model, PROFILES["pcm"], seed=0)
    with pytest.warns(UserWarning, match="grouped"):
        expected = predict(chip, PAIRS)
    save_chip(tmp_path / "chip", chip)
    again = load_chip(tmp_path / "chip", model)
    assert again.digital_layers == chip.digital_layers
    assert np.array_equal(np.stack(predict(again, PAIRS)["logits"]), np.stack(expected["logits"]))


CONVOLUTIONS = {
    "signal": (lambda: nn.Conv1d(3, 5, 4, 2, 1, 2), (3, 12)),
    "signal, by name": (lambda: nn.Conv1d(3, 5, 3, padding="same"), (3, 12)),
    "signal without bias": (lambda: nn.Conv1d(3, 5, 1, bias=False), (3, 12)),
    "volume": (lambda: nn.Conv3d(2, 4, (3, 2, 1), (2, 1, 1), (1, 0, 1), (2, 2, 1)), (2, 7, 4, 4)),
    "volume, by name": (lambda: nn.Conv3d(2, 4, 3, padding="same"), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_one_and_three_dimensions_are_on_tiles(name, engine):
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(4, *shape)
    expected = model(x)
    chip = program(model, PROFILES["ideal"], seed=0, engine=engine, strict=True)
    assert "0.conv" in named_layers(chip.analog)
    torch.testing.assert_close(chip(x, range(4)), expected, rtol=1e-4, atol=1e-5)
    noisy = program(model, PROFILES["wnoise+pcm"], seed=0, engine=engine)
    found = noisy(x, range(4))
    assert (found - expected).abs().max() > 1e-3
    torch.testing.assert_close(noisy(x[2:3], [2])[0], found[2], rtol=1e-4, atol=1e-5)

"""Honest networks, as people write them: chips give the right values, on both engines."""

import functools
import threading
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional

from bridge import PROFILES, Profile, Router, predict, program, weight_moments
from bridge.chips import (
    ADC,
    WeightNoise,
    layer_failures,
    layer_report,
    load_chip,
    output_noise,
    save_chip,
)
from bridge.chips.tiles import effective_weight, named_layers
from tests.chips import noisy

FINE = Profile(ADC(22))
WEAK = Profile(wnoise=WeightNoise(1e-6, drawn="per_mvm"))
ROUTES: list[tuple[Profile, Any]] = [
    (PROFILES["ideal"], "fast"),
    (FINE, "fast"),
    (WEAK, "fast"),
    (FINE, "aihwkit"),
]
IMAGES = np.random.default_rng(3).normal(size=(6, 8, 8, 3)).astype(np.float32)
TENSOR = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
SAMPLES = (IMAGES, np.arange(6) % 5)
STRONG = noisy("constant", 0.1)


def made(kind: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind().eval().requires_grad_(False)


def logits(chip: Any, batch_size: int = 6) -> np.ndarray:
    return np.stack(predict(chip, SAMPLES, batch_size=batch_size)["logits"])


def off(found: Any, expected: torch.Tensor) -> float:
    return float((torch.as_tensor(found) - expected).abs().max() / expected.abs().max())


def require_right(model: nn.Module, digital_layers: list[str] | None = None) -> None:
    """The digital values on every route, alone and in a batch, under strong noise too."""
    expected = deepcopy(model)(TENSOR)
    settings: dict[str, Any] = {"seed": 0, "digital_layers": digital_layers or []}
    for profile, engine in ROUTES:
        images = None if profile.adc is None else IMAGES
        chip = program(model, profile, calibration=images, engine=engine, **settings)
        assert off(logits(chip), expected) < 1e-4
    chip = program(model, STRONG, **settings)
    together = logits(chip)
    assert off(together, expected) > 1e-3
    for batch_size in (1, 2, 4):
        np.testing.assert_allclose(logits(chip, batch_size), together, rtol=1e-3, atol=1e-5)


class Shared(nn.Module):
    """Layers and a block of several names, in digital and on tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU()
        self.norm.running_mean = torch.randn(6)
        self.conv, self.mix = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        block = nn.Sequential(nn.Conv2d(6, 6, 1), self.norm, self.act)
        self.blocks = nn.ModuleList([block, block, nn.Sequential(self.mix, self.norm)])
        self.scale = nn.LayerNorm(6)
        self.heads = nn.ModuleDict({"scale": self.scale, "fc": nn.Linear(6, 5)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.mix(self.conv(x))))
        for block in self.blocks:
            x = x + block(x)
        return self.heads["fc"](self.scale(self.heads["scale"](x.mean((2, 3)))))


@pytest.mark.parametrize("name", ["scale", "heads.scale"])
def test_layers_may_have_several_names(name: str) -> None:
    require_right(made(Shared), [name])


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_a_layer_of_several_names_is_one_on_the_chip(engine: Any, tmp_path: Any) -> None:
    model = made(Shared)
    settings: dict[str, Any] = {"seed": 0, "engine": engine, "digital_layers": ["scale"]}
    chip = program(model, PROFILES["pcm"], **settings)
    assert list(named_layers(chip.analog)) == ["conv", "mix", "blocks.0.0", "heads.fc"]
    assert chip.executable.network.mix is chip.executable.network.blocks[2][0]
    assert chip.executable.network.blocks[0] is chip.executable.network.blocks[1]
    save_chip(tmp_path / "chip", chip)
    np.testing.assert_array_equal(logits(load_chip(tmp_path / "chip", model)), logits(chip))
    left = program(model, PROFILES["pcm"], **settings | {"digital_layers": ["scale", "blocks.2"]})
    assert list(named_layers(left.analog)) == ["conv", "blocks.0.0", "heads.fc"]
    torch.testing.assert_close(left.analog.mix.weight, model.mix.weight)


def test_reports_of_layers_of_several_names() -> None:
    model = made(Shared)
    chip = program(model, PROFILES["pcm"], seed=0, digital_layers=["scale"])
    table = layer_report(chip, model, IMAGES)
    assert set(table["layer"]) == {"conv", "mix", "blocks.0.0", "heads.fc"}
    assert (table["snr_db"] < 60).all()
    failures = layer_failures(model, PROFILES["pcm"], SAMPLES, digital_layers=["scale"])
    assert len(failures) == 5
    moments = weight_moments(model, PROFILES["pcm"], digital_layers=["scale"])
    assert moments["mix.weight"].mean.abs().max() > 0
    assert moments["blocks.2.0.weight"] is moments["mix.weight"]
    assert moments["blocks.1.0.weight"] is moments["blocks.0.0.weight"]


class Queries(nn.Module):
    """Attention of learned queries and a class token, which go into layers without the samples."""

    def __init__(self, rows: int = 4, axes: int = 2) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.queries = nn.Parameter(torch.randn(*[1] * (axes - 2), rows, 6))
        self.token = nn.Parameter(torch.randn(6))
        self.q, self.k, self.v, self.t = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).flatten(2).transpose(1, 2)
        q = self.q(self.queries) + self.t(self.token)
        weights = (q @ self.k(features).transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.v(features)).mean(1))


class LengthFirst(nn.Module):
    """Sequences `[length, batch, feature]`, or `[length * batch, feature]`."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 5)
        self.flat = flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).flatten(2).permute(2, 0, 1)
        rows = features.reshape(-1, 6) if self.flat else features
        return self.head(self.fc(rows).relu().view_as(features).mean(0))


class Coordinates(nn.Module):
    """A network of constant coordinates gives what is added to every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.register_buffer("places", torch.rand(6, 6, 2))
        self.mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(
            (self.conv(x) + self.mlp(self.places).permute(2, 0, 1)).relu().mean((2, 3))
        )


WITHOUT_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "queries": Queries,
    "as many queries as samples": lambda: Queries(6),
    "one batch of queries": lambda: Queries(3, 3),
    "length first": LengthFirst,
    "length first in one axis": lambda: LengthFirst(flat=True),
    "coordinates": Coordinates,
}


@pytest.mark.parametrize("name", WITHOUT_SAMPLES)
def test_layers_may_work_on_other_rows_than_the_samples(name: str) -> None:
    require_right(made(WITHOUT_SAMPLES[name]))


@pytest.mark.parametrize("name", WITHOUT_SAMPLES)
def test_the_noise_of_outputs_of_other_rows_than_the_samples(name: str) -> None:
    model = made(WITHOUT_SAMPLES[name])
    alone = output_noise(model, STRONG, SAMPLES, batch_size=1)
    for batch_size in (2, 3, 6):
        found = output_noise(model, STRONG, SAMPLES, batch_size=batch_size)
        np.testing.assert_allclose(found["variance"], alone["variance"], rtol=1e-4)


def test_layers_of_samples_still_run_together() -> None:
    chip = program(made(Shared), STRONG, seed=0, digital_layers=["scale"])
    logits(chip)
    assert not chip.executable.one_by_one


def test_the_report_of_layers_that_work_on_other_rows_than_the_samples() -> None:
    model = made(Queries)
    table = layer_report(program(model, STRONG, seed=0), model, IMAGES).set_index("layer")
    assert set(table.index) == {"conv", "q", "t", "k", "v", "head"}
    assert table["own_snr_db"].between(0, 40).all()


class Reads(nn.Module):
    """Asks its layers for dtypes, devices and shapes, as timm and Hugging Face's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, bias=False), nn.Linear(6, 5)

    @property
    def dtype(self) -> torch.dtype:
        return next(parameter.dtype for parameter in self.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(next(self.parameters()).device, self.conv.weight.dtype).to(self.dtype)
        assert hasattr(self.fc, "weight")
        assert self.conv.weight.shape == (6, 3, 3, 3)
        assert self.conv.bias is None
        assert self.fc.weight.shape == (5, 6)
        assert self.fc.bias.shape == (5,)
        features = self.conv(x).mean((2, 3), dtype=next(self.fc.parameters()).dtype)
        return self.fc(features).to(self.fc.bias.device)


def test_code_may_read_what_its_layers_weights_are() -> None:
    require_right(made(Reads))


class Normed(Reads):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / self.fc.weight.norm() + self.conv.weight.abs().max()


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_weights_that_are_read_are_those_on_the_tiles(engine: Any) -> None:
    require_right(made(Normed))
    model = made(Reads)
    for profile in (PROFILES["pcm"], PROFILES["adc+wnoise+pcm"], STRONG):
        images = None if profile.adc is None else IMAGES
        chip = program(model, profile, seed=0, calibration=images, engine=engine)
        layers = named_layers(chip.analog)
        found = chip.executable.network
        for name in ("conv", "fc"):
            expected = effective_weight(layers[name])
            torch.testing.assert_close(found.get_submodule(name).weight.flatten(1), expected)
        torch.testing.assert_close(found.fc.bias, model.fc.bias)


class Padded(nn.Module):
    """A transformer of padded sequences, which the encoder makes nested tensors of."""

    def __init__(self, kind: str = "end", heads: int = 2, **settings: Any) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 5)
        layer = nn.TransformerEncoderLayer(6, heads, 8, batch_first=True)
        settings = {"norm": nn.LayerNorm(6)} | settings
        self.encoder = nn.TransformerEncoder(layer, 2, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        length = 2 + 6 * torch.sigmoid(x[:, 0, 0, :1])
        padded = torch.arange(tokens.shape[1]) >= length
        settings: dict[str, Any] = {}
        if self.kind == "front":
            padded = padded.flip(1)
        elif self.kind == "none":
            padded = torch.zeros_like(padded)
        elif self.kind == "floats":
            padded = torch.zeros(padded.shape).masked_fill(padded, -torch.inf)
        elif self.kind == "causal":
            size = tokens.shape[1]
            settings["mask"] = nn.Transformer.generate_square_subsequent_mask(size) < 0
        return self.head(self.encoder(tokens, src_key_padding_mask=padded, **settings).mean(1))


def transformer_s_own(model: nn.Module) -> list[str]:
    kinds = (nn.LayerNorm, nn.MultiheadAttention)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(
    "kind",
    [
        lambda: Padded(),
        lambda: Padded(norm=None),
        lambda: Padded("front"),
        lambda: Padded("none"),
        lambda: Padded("floats"),
        lambda: Padded("causal"),
        lambda: Padded(heads=3),
        lambda: Padded(enable_nested_tensor=False),
    ],
)
def test_transformers_of_padded_sequences(kind: Callable[[], nn.Module]) -> None:
    model = made(kind)
    left = transformer_s_own(model)
    require_right(model, left)
    again = program(
        program(model, FINE, seed=0, calibration=IMAGES, digital_layers=left).analog,
        PROFILES["ideal"],
        seed=0,
    )
    assert off(logits(again), model(TENSOR)) < 1e-4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_reports_of_transformers_of_padded_sequences() -> None:
    model = made(Padded)
    left = transformer_s_own(model)
    chip = program(model, FINE, seed=0, calibration=IMAGES, digital_layers=left)
    table = layer_report(chip, model, IMAGES)
    assert len(table) == 6
    assert (table["snr_db"] > 80).all()
    settings: dict[str, Any] = {"calibration": IMAGES, "digital_layers": left}
    together = output_noise(model, FINE, SAMPLES, **settings)
    alone = output_noise(model, FINE, SAMPLES, batch_size=1, **settings)
    np.testing.assert_allclose(together["variance"], alone["variance"], rtol=1e-3)
    np.testing.assert_allclose(
        together["margin"], model(TENSOR).topk(2).values.diff()[:, 0].neg(), rtol=1e-3
    )


def smaller(layer: Any, outputs: int | None, inputs: int | None) -> None:
    """Prunes a layer's channels as people do: the weights alone."""
    layer.weight = nn.Parameter(layer.weight[:outputs, :inputs].detach().clone())
    layer.bias = nn.Parameter(layer.bias[:outputs].detach().clone())


def pruned() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 9)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(9, 5))
    smaller(model[0], 5, None)
    smaller(model[2], 4, 5)
    smaller(model[4], 7, 80)
    smaller(model[6], None, 7)
    model[0].weight = nn.Parameter(model[0].weight[..., :2].clone())
    return model


def test_pruned_layers_are_as_large_as_their_weights(tmp_path: Any) -> None:
    model = made(pruned)
    require_right(model)
    assert model[0].out_channels == 8
    chip = program(model, PROFILES["pcm"], seed=0)
    assert named_layers(chip.analog)["2"].in_channels == 5
    save_chip(tmp_path / "chip", chip)
    np.testing.assert_array_equal(logits(load_chip(tmp_path / "chip", model)), logits(chip))


def test_half_pruned_layers_are_refused() -> None:
    model = made(pruned)
    model[2].bias = nn.Parameter(torch.zeros(6))
    with pytest.raises(ValueError, match=r"layer 2 \(Conv2d\) .* 4 outputs and its bias 6; prune"):
        program(model, PROFILES["ideal"], seed=0)


class Experts(nn.Module):
    """A router sends each image to one of four layers."""

    def __init__(self, unused: bool = True) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.router = nn.Linear(6, 4)
        with torch.no_grad():
            self.router.weight *= 20
            self.router.bias += torch.tensor([0.0, 0.0, -1e3, -1e3]) if unused else 0.0

    def route(self, features: torch.Tensor) -> torch.Tensor:
        return self.router(features - features.mean(1, keepdim=True)).argmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).relu().mean((2, 3))
        chosen, mixed = self.route(features), features.clone()
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                mixed[rows] = expert(features[rows])
        return self.head(mixed)


@pytest.mark.filterwarnings("ignore:experts.2, experts.3 on tiles")
def test_experts_that_no_image_needs() -> None:
    model = made(Experts)
    expected = model(TENSOR)
    given = Profile(ADC(22, range=40.0))
    for profile, engine in [*ROUTES, (given, "fast"), (given, "aihwkit")]:
        if profile is not FINE:
            chip = program(model, profile, seed=0, engine=engine)
            assert off(logits(chip), expected) < 1e-4
            continue
        with pytest.raises(
            ValueError, match=r"not used on the 6 .*: layer experts\.2, experts\.3;"
        ):
            program(model, profile, seed=0, engine=engine, calibration=IMAGES)
    require_right(model, ["experts.2", "experts.3"])
    table = output_noise(model, STRONG, SAMPLES)
    alone = output_noise(model, STRONG, SAMPLES, batch_size=1)
    np.testing.assert_allclose(table["variance"], alone["variance"], rtol=1e-4)


def test_percentiles_of_what_reaches_each_expert() -> None:
    model = made(lambda: Experts(unused=False))
    images = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype(np.float32)
    profile = Profile(ADC(percentile=90.0))
    chip = program(model, profile, seed=0, calibration=images)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    features = model.conv(x).relu().mean((2, 3))
    chosen = model.route(features)
    assert len(chosen.unique()) == 4
    for number, expert in enumerate(model.experts):
        rows = features[chosen == number]
        outputs = rows / rows.abs().amax(1, keepdim=True) @ expert.weight.T
        outputs = (outputs / expert.weight.abs().max()).abs().flatten().sort().values
        expected = outputs[int(np.ceil(len(outputs) * 0.9)) - 1]
        assert chip.out_bounds[f"experts.{number}.analog_module"] == pytest.approx(
            float(expected), rel=1e-5
        )


@pytest.mark.filterwarnings("ignore:.* on tiles. not called")
@pytest.mark.parametrize("profile", [noisy("constant", 0.3), PROFILES["wnoise+pcm"]])
def test_the_report_of_a_router_that_errs(profile: Profile) -> None:
    model = made(lambda: Experts(unused=False))
    images = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
    table = layer_report(program(model, profile, seed=0), model, images).set_index("layer")
    assert table.loc[["conv", "router", "head"], "snr_db"].between(-20, 60).all()
    assert table.loc[[f"experts.{n}" for n in range(4)], "snr_db"].isna().any()
    assert table["own_snr_db"].drop("experts.3").between(-20, 60).all()  # which none needs


class Auxiliary(nn.Module):
    """A head for training, and an average of the weights, that evaluation does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
        self.auxiliary, self.average = nn.Linear(216, 5), deepcopy(self.net)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + (self.auxiliary(x) if self.training else 0.0)


@pytest.mark.filterwarnings("ignore:.* on tiles. not called")
def test_layers_for_training_alone() -> None:
    model = made(Auxiliary)
    for profile, engine in [ROUTES[0], ROUTES[2], (PROFILES["ideal"], "aihwkit")]:
        chip = program(model, profile, seed=0, engine=engine)
        assert off(logits(chip), model(TENSOR)) < 1e-4
    require_right(model, ["auxiliary", "average"])
    failures = layer_failures(model, PROFILES["pcm"], SAMPLES).set_index("layer")
    assert failures.loc["auxiliary", "failures"] == 0


def by_name(kernel: Any = (5, 3), dilation: Any = (1, 2)) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.Conv2d(6, 6, 3, padding="valid"),
        nn.Conv2d(6, 6, kernel, padding="same", dilation=dilation),
        nn.Flatten(),
        nn.Linear(216, 5),
    )


def test_convolutions_may_pad_by_name(tmp_path: Any) -> None:
    model = made(by_name)
    require_right(model)
    assert model[0].padding == "same"
    chip = program(model, PROFILES["pcm"], seed=0)
    save_chip(tmp_path / "chip", chip)
    np.testing.assert_array_equal(logits(load_chip(tmp_path / "chip", model)), logits(chip))
    require_right(made(lambda: by_name(4, 2)))
    uneven = made(lambda: by_name((3, 4), 1))
    with pytest.raises(ValueError, match=r"layer 2 \(padded by one more on one side\)"):
        program(uneven, PROFILES["ideal"], seed=0, strict=True)


class Squeezed(nn.Module):
    """Gives `[class]` for a batch of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 8), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).squeeze())


def test_networks_that_squeeze_the_last_batch_of_one() -> None:
    model = made(Squeezed)
    require_right(model)
    assert off(logits(model, 5), model(TENSOR)) < 1e-5
    one = program(model, STRONG, seed=0, engine="aihwkit")
    np.testing.assert_allclose(logits(one, 5), logits(one, 1), rtol=1e-5)
    routed = Router(model, program(model, PROFILES["ideal"], seed=0), threshold=np.inf)
    assert off(routed(IMAGES[:1]).logits, model(TENSOR)[:1]) < 1e-4


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        self.net.lock = {"lock": threading.Lock()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def sparse() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    model[1].weight = nn.Parameter(model[1].weight.detach().to_sparse())
    return model


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()


UNREADABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lock": (Holds, r"net\.lock of the model, a dict, cannot be copied.*set it to None"),
    "sparse": (sparse, r"1\.weight of a sparse layout.*to_dense"),
    "meta": (lambda: small().to("meta"), r"1\.weight, 1\.bias on the meta device .*to_empty"),
    "script": (lambda: torch.jit.trace(small(), TENSOR), "the model is TorchScript.*Python module"),
    "script within": (
        lambda: nn.Sequential(torch.jit.trace(small(), TENSOR), nn.Linear(5, 5)),
        "layer 0 is TorchScript",
    ),
    "exported": (
        lambda: torch.export.export(small(), (TENSOR,)).module(),
        r"program of torch\.export.*module that was exported",
    ),
    "quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}),
        r"layer 1 \(Linear\) is quantised: give the network before",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_told_with_the_cure(name: str) -> None:
    make, message = UNREADABLE[name]
    model = make()
    if name != "exported":
        model.eval()
    with pytest.raises(ValueError, match=message):
        program(model, PROFILES["ideal"], seed=0)


class Quantisable(nn.Module):
    """A float network, written so that it can be quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), nn.Identity()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.bn.running_mean = torch.randn(6)
        self.mix, self.add = nn.Conv2d(6, 6, 3, padding=1), FloatFunctional()
        self.hidden, self.act, self.fc = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.add.add_relu(x, self.mix(x)).mean((2, 3))
        return self.dequant(self.fc(self.act(self.hidden(x))))


PARTS = [["conv", "bn", "relu"], ["hidden", "act"]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_float_networks_written_for_quantisation(fused: bool) -> None:
    model = made(Quantisable)
    if fused:
        model = torch.ao.quantization.fuse_modules(model, PARTS).eval().requires_grad_(False)
    require_right(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_networks_that_are_quantised_are_refused(fused: bool, converted: bool) -> None:
    model = made(Quantisable).train()
    if fused:
        model = torch.ao.quantization.fuse_modules_qat(model, PARTS)
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    model = torch.ao.quantization.prepare_qat(model).eval()
    if converted:
        model = torch.ao.quantization.convert(model)
    with pytest.raises(ValueError, match=r"is quantised: give the network before"):
        program(model, PROFILES["ideal"], seed=0)


class Normalising(nn.Module):
    """The cure for a forward that is replaced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) / 0.25


def replaced_root() -> tuple[nn.Module, str]:
    model = made(Shared)
    old = model.forward
    model.forward = lambda x: old((x - 0.5) / 0.25)
    return model, r"the model \(Shared\)"


def replaced_by_decoration() -> tuple[nn.Module, str]:
    model = made(Shared)
    model.forward = torch.no_grad()(torch.autocast("cpu", enabled=False)(model.forward))
    return model, r"the model \(Shared\)"


def replaced_by_itself() -> tuple[nn.Module, str]:
    model = made(Shared)
    model.forward = lambda x: type(model).forward(model, x * 2)
    return model, r"the model \(Shared\)"


def replaced_layer() -> tuple[nn.Module, str]:
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(small_head())))
    old = model[1].forward
    model[1].forward = lambda x: old(x.relu())
    return model, r"layer 1 \(Sequential\)"


def small_head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(216, 5))


@pytest.mark.parametrize(
    "make", [replaced_root, replaced_by_decoration, replaced_by_itself, replaced_layer]
)
def test_a_forward_replaced_by_a_function_is_told_as_such(
    make: Callable[[], tuple[nn.Module, str]],
) -> None:
    model, name = make()
    message = rf"the forward of {name} was replaced.*nn\.Sequential\(Normalise\(\), model\)"
    with pytest.raises(ValueError, match=message):
        program(model, PROFILES["ideal"], seed=0)


def test_the_cures_for_a_forward_replaced_by_a_function() -> None:
    require_right(nn.Sequential(Normalising(), made(Shared)).eval())
    model = made(Shared)
    model.forward = partial(Shared.forward, model)
    require_right(model)
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), small_head()))
    old = model[1].forward
    model[1].forward = lambda x: old(x) * 2  # which holds no layer that is mapped
    require_right(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_activations() -> None:
    require_right(made(lambda: nn.Sequential(small(), torch.jit.script(nn.ReLU()))))


class Initialised(nn.Conv2d):
    """A subclass that computes as PyTorch's."""

    gain = 2.0

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters, 3, bias=False)
        nn.init.kaiming_normal_(self.weight)

    def norm(self) -> torch.Tensor:
        return self.weight.norm()


class Readout(nn.Linear):
    pass


class Subclasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = Initialised(3, 6), nn.utils.parametrizations.weight_norm(Readout(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class AsksForKinds(Subclasses):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * self.conv.gain / self.conv.norm() if isinstance(self.conv, Initialised) else x
        return self.fc(x.relu().mean((2, 3)))


class Padding(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def test_subclasses_that_compute_as_pytorch_s_layers_go_to_tiles() -> None:
    model = made(Subclasses)
    require_right(model)
    assert list(named_layers(program(model, FINE, seed=0, calibration=IMAGES).analog)) == [
        "conv",
        "fc",
    ]
    asks = made(AsksForKinds)
    assert off(logits(program(asks, PROFILES["ideal"], seed=0)), asks(TENSOR)) < 1e-4
    for profile, images in ((FINE, IMAGES), (STRONG, None)):
        with pytest.raises(ValueError, match=r"fails on tiles|asks for their kind"):
            logits(program(asks, profile, seed=0, calibration=images))
    padding = nn.Sequential(Padding(3, 5, 3), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=r"0 \(Padding\) .* with a forward of its own it is"):
        program(padding, PROFILES["ideal"], seed=0)


@pytest.mark.parametrize("name", ["nn.Linear.forward", "nn.functional.linear"])
def test_functions_that_other_code_replaced_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, attribute = f"torch.{name}".rsplit(".", 1)

    @functools.wraps(nn.Linear.forward)
    def clamped(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.clamp(max=0.1), self.weight.T)

    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 3)).eval()
    with monkeypatch.context() as patched:
        patched.setattr(f"{at}.{attribute}", clamped)
        with pytest.raises(ValueError, match=rf"layer 2 .*{name} is not PyTorch's, put that back"):
            program(model, PROFILES["wnoise"], seed=0)
        program(model, PROFILES["wnoise"], seed=0, digital_layers=["2"])
    program(model, PROFILES["wnoise"], seed=0)


class EmptyExperts(nn.Module):
    """Experts that are called with no rows at all where a batch needs none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x[:, 0] > 0
        out = x.new_zeros(len(x), 5)
        out[first], out[~first] = self.a(x[first]), self.b(x[~first])
        return out


@pytest.mark.parametrize("profile", ["ideal", "adc", "wnoise"])
def test_experts_may_be_called_with_no_rows(profile: str) -> None:
    torch.manual_seed(0)
    model = EmptyExperts().eval().requires_grad_(False)
    x = torch.randn(16, 4)
    chip = program(model, PROFILES[profile], seed=0, calibration=x)
    assert off(chip(x.abs(), range(16)), model(x.abs())) < 0.2
    assert off(chip(-x.abs(), range(16)), model(-x.abs())) < 0.2


def test_handles_of_hooks_may_be_kept_on_the_network() -> None:
    model: Any = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    model.handle = model[1].register_forward_hook(lambda layer, args, output: 2 * output)
    require_right(model)


class TakesNoNan(nn.Module):
    """Code between its layers that NaN, or no number at all, would stop."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(192, 16), nn.Linear(16, 5), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b(self.between(self.a(x.flatten(1))))
        return found


def finite(x: torch.Tensor) -> torch.Tensor:
    assert torch.isfinite(x).all(), "features must be finite"
    return x


def binned(x: torch.Tensor) -> torch.Tensor:
    counts = [torch.bincount((one * 4).clamp(0, 15).long(), minlength=16)[:16] for one in x]
    return torch.stack(counts).float()


def whitened(x: torch.Tensor) -> torch.Tensor:
    square = x.view(-1, 4, 4)
    return torch.linalg.cholesky(square @ square.mT + torch.eye(4)).flatten(1)


def looked_up(x: torch.Tensor) -> torch.Tensor:
    return torch.eye(16)[(x * 4).round().long().clamp(-7, 7)].mean(1)


def decomposed(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svd(x.view(-1, 4, 4)).U.abs().flatten(1)


TAKES_NO_NAN = [finite, binned, whitened, looked_up, decomposed]


@pytest.mark.parametrize("between", TAKES_NO_NAN)
def test_a_converter_is_not_run_before_it_is_calibrated(between: Any) -> None:
    model = made(lambda: TakesNoNan(between))
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    chip = program(model, Profile(ADC(22)), seed=0, calibration=images)
    assert all(torch.isfinite(torch.tensor(bound)) for bound in chip.out_bounds.values())
    assert off(chip(images, range(6)), model(images)) < 1e-2

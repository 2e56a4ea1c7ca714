"""What layers carry beside their weights stays on a chip, or is refused by the layer's name."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from bridge import PROFILES, Profile, load_chip, program, save_chip
from bridge.chips import ADC, WeightNoise, layer_report, output_noise, weight_moments
from tests.chips import single

FINE = Profile(ADC(22, range=60.0))
IMAGES = torch.tensor(np.random.default_rng(2).normal(size=(6, 3, 8, 8)).astype(np.float32))
ROUTES = [(PROFILES["ideal"], "fast"), (PROFILES["ideal"], "aihwkit"), (FINE, "fast")]


def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            fc=nn.Linear(16, 5),
        )
    return nn.Sequential(layers).eval().requires_grad_(False)


def digital(model: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def off(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def doubled(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def shifted(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0] + 0.5,)


def shifted_in_words(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    return (args[0] - 0.25, *args[1:]), kwargs


def hooked(where: str, register: Callable[[nn.Module], object]) -> nn.Module:
    model = network()
    register(model.get_submodule(where))
    return model


REGISTER: dict[str, Callable[[nn.Module], object]] = {
    "hook": lambda layer: layer.register_forward_hook(doubled),
    "hook with kwargs": lambda layer: layer.register_forward_hook(
        lambda layer, args, kwargs, output: output.exp(), with_kwargs=True
    ),
    "pre-hook": lambda layer: layer.register_forward_pre_hook(shifted),
    "pre-hook with kwargs": lambda layer: layer.register_forward_pre_hook(
        shifted_in_words, with_kwargs=True
    ),
    "hook with the layer's own": lambda layer: layer.register_forward_hook(
        lambda layer, args, output: output + layer.gain
    ),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("where", ["conv", "fc", ""])
@pytest.mark.parametrize("name", REGISTER)
def test_hooks_stay(name: str, where: str) -> None:
    model = hooked(where, REGISTER[name])
    model.get_submodule(where).gain = 3.0
    expected = digital(model)
    assert name == "backward" or off(digital(network()), expected) > 0.1
    for profile, engine in ROUTES:
        chip = program(model, profile, seed=0, engine=engine)
        assert off(chip(IMAGES, range(6)), expected) < 1e-4


def test_the_hooks_of_a_layer_that_is_the_network_stay() -> None:
    layer = nn.Linear(8, 4).eval()
    layer.register_forward_hook(doubled)
    for profile, engine in ROUTES:
        chip = program(layer, profile, seed=0, engine=engine)
        assert off(chip(IMAGES[:, 0, 0], range(6)), digital(layer, IMAGES[:, 0, 0])) < 1e-4


class OneByOne(nn.Module):
    """Calls its layers with single images, and a linear layer with single vectors."""

    def __init__(self, hook: Callable[..., object], pre: Callable[..., object]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)
        for layer in (self.conv, self.fc):
            layer.register_forward_hook(hook)
            layer.register_forward_pre_hook(pre)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.fc(self.conv(one).flatten()) for one in x])


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_hooks_run_once_on_one_image(engine: str) -> None:
    model = OneByOne(doubled, shifted)
    expected = digital(model)
    for profile in (PROFILES["ideal"], FINE):
        chip = program(model, profile, seed=0, engine=engine)
        assert off(chip(IMAGES, range(6)), expected) < 1e-4
    quiet = Profile(wnoise=WeightNoise(1e-9, drawn="per_mvm"))
    found = program(model, quiet, seed=0, engine=engine)(IMAGES[:1], range(1))
    assert off(found, expected[:1]) < 1e-4


def test_the_noise_of_outputs_of_one_image() -> None:
    model = OneByOne(doubled, shifted)
    whole = nn.Sequential(OrderedDict(conv=model.conv, flatten=nn.Flatten(), fc=model.fc)).eval()
    profile = Profile(ADC(6, range=20.0))
    rows = [{"image": image.permute(1, 2, 0).numpy(), "label": 0} for image in IMAGES]
    expected, found = (output_noise(one, profile, rows, batch_size=1) for one in (whole, model))
    np.testing.assert_allclose(found["variance"], expected["variance"], rtol=1e-4)
    together = output_noise(model, profile, rows)
    np.testing.assert_allclose(together["variance"], expected["variance"], rtol=1e-4)


class Scaled(nn.Module):
    """A network whose method is a hook of one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gain = network(), 3.0
        self.body.conv.register_forward_hook(partial(self.scale, by=2.0))

    def scale(self, _: nn.Module, args: tuple, output: torch.Tensor, by: float) -> torch.Tensor:
        self.seen = output
        return output * self.gain * by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.seen.mean((2, 3)).sum(1, keepdim=True)


def test_a_hook_that_is_a_method_is_the_copy_s_own() -> None:
    model = Scaled().eval()
    expected = digital(model)
    model.seen = torch.full((6, 4, 6, 6), torch.nan)
    chip = program(model, PROFILES["ideal"], seed=0)
    assert off(chip(IMAGES, range(6)), expected) < 1e-4
    assert model.seen.isnan().all()


@pytest.mark.parametrize("where", ["conv", "act"])
def test_hooks_that_refer_to_the_original_network_are_refused(where: str) -> None:
    """A copy's hook would run or read the original."""
    model = Scaled()
    hook = lambda layer, args, output: output * model.gain  # noqa: E731
    model.body.get_submodule(where).register_forward_hook(hook)
    with pytest.raises(ValueError, match=rf"hook of layer body\.{where} .* refers to the network"):
        program(model.eval(), PROFILES["ideal"], seed=0)


def test_a_hook_that_reads_an_attribute_of_the_name_of_a_network_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    monkeypatch.setitem(globals(), "gain", model)
    model.conv.gain = torch.tensor(2.0)
    model.conv.register_forward_hook(lambda layer, args, output: output * layer.gain)
    expected = digital(model.eval())
    assert off(program(model, PROFILES["ideal"], seed=0)(IMAGES, range(6)), expected) < 1e-4
    model.act.register_forward_hook(lambda layer, args, output: gain.conv(output))  # noqa: F821
    with pytest.raises(ValueError, match=r"hook of layer act .* refers to the network"):
        program(model, PROFILES["ideal"], seed=0)


# Parametrizations


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


class Random(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.randn_like(weight)


def trained_a_step(layer: nn.Module, old: Callable[[nn.Module], object]) -> None:
    """In training mode spectral normalisation moves at each pass."""
    old(layer)
    shape = (1, 3, 8, 8) if isinstance(layer, nn.Conv2d) else (1, 16)
    layer.train()(torch.ones(shape))
    layer.eval()


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.6)
    prune.random_unstructured(layer, "weight", amount=0.3)
    prune.l1_unstructured(layer, "bias", amount=2)


def pruned_and_loaded(layer: nn.Module) -> None:
    """The pruned weight is that of the last pass, not of the values loaded since."""
    pruned(layer)
    layer.weight_orig.data.mul_(-1.5)


PARAMETRIZED: dict[str, Callable[[Any], object]] = {
    "prune": pruned,
    "prune, then load": pruned_and_loaded,
    "structured": lambda layer: prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0),
    "weight norm": lambda layer: trained_a_step(layer, parametrizations.weight_norm),
    "spectral norm": lambda layer: trained_a_step(layer, parametrizations.spectral_norm),
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": lambda layer: trained_a_step(layer, torch.nn.utils.weight_norm),
    "old spectral norm": lambda layer: trained_a_step(layer, torch.nn.utils.spectral_norm),
    "own": lambda layer: parametrize.register_parametrization(layer, "bias", Halved()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("where", ["conv", "fc"])
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_weights_are_those_of_the_chip(name: str, where: str, tmp_path: Any) -> None:
    model = network().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        PARAMETRIZED[name](model.get_submodule(where))
    model.get_submodule(where).register_forward_hook(doubled)
    model.eval()
    model(IMAGES)  # outside of inference mode: the weights that hooks compute are then no leaves
    expected = digital(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for profile, engine in ROUTES:
        chip = program(model, profile, seed=0, engine=engine)
        assert off(chip(IMAGES, range(6)), expected) < 1e-4
    save_chip(tmp_path / "chip.safetensors", chip)
    loaded = load_chip(tmp_path / "chip.safetensors", model)
    assert torch.equal(loaded(IMAGES, range(6)), chip(IMAGES, range(6)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_parametrizations_of_one_parameter() -> None:
    model = network()
    model.flatten = nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False))
    model.fc = nn.Linear(16, 16, bias=False)
    model.fc.weight = model.flatten[1].weight
    for layer in (model.flatten[1], model.fc):
        parametrize.register_parametrization(layer, "weight", Halved())
    model.eval()
    chip = program(model, PROFILES["ideal"], seed=0)
    assert off(chip(IMAGES, range(6)), digital(model)) < 1e-4


def test_parametrizations_of_a_digital_layer_stay() -> None:
    model = network()
    parametrizations.weight_norm(model.conv)
    prune.l1_unstructured(model.conv, "bias", amount=2)
    model.eval()
    chip = program(model, PROFILES["pcm"], seed=0, digital_layers=["conv"])
    assert off(chip.executable.network.conv(IMAGES), digital(model.conv)) < 1e-6


def test_random_parametrizations_are_refused() -> None:
    model = network()
    parametrize.register_parametrization(model.fc, "weight", Random())
    with pytest.raises(ValueError, match=r"layer fc has a parametrization .* other weights each"):
        program(model.eval(), PROFILES["ideal"], seed=0)


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square()


# Layers that are more than their type says


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


def with_forward(layer: Any) -> Any:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)
    return layer


def with_padding(layer: Any) -> Any:
    """Pads circularly, as is done to networks whose images are to tile."""

    def circular(self: Any, x: Any, weight: Any, bias: Any) -> Any:
        return nn.functional.conv2d(nn.functional.pad(x, 4 * (1,), "circular"), weight, bias)

    layer._conv_forward = circular.__get__(layer)
    return layer


def with_call(layer: Any) -> Any:
    layer._call_impl = lambda x: 2 * layer.forward(x)
    return layer


def with_words(layer: Any) -> Any:
    layer.extra_repr = layer.state_dict = lambda *args, **kwargs: "a layer"
    layer.act = nn.functional.relu
    return layer


def with_scale(layer: Any) -> Any:
    layer.scale = nn.Parameter(torch.ones(1))
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Standardised(3, 4, 3), r"layer conv \(Standardised\) .* neither Conv2d nor Linear"),
        (with_forward(nn.Conv2d(3, 4, 3)), r"layer conv \(Conv2d\) .* a forward of its own"),
        (with_padding(nn.Conv2d(3, 4, 3)), r"layer conv \(Conv2d\) .* a _conv_forward of its own"),
        (with_call(nn.Conv2d(3, 4, 3)), r"layer conv \(Conv2d\) .* a _call_impl of its own"),
        (with_scale(nn.Conv2d(3, 4, 3)), r"layer conv .* tensors beside its weights \(scale\)"),
        (nn.LazyConv2d(4, 3), r"conv\.weight, conv\.bias of lazy layers have no values yet"),
    ],
    ids=["subclass", "forward", "padding", "call", "parameter", "lazy"],
)
def test_layers_with_more_than_weights_are_refused(layer: nn.Module, message: str) -> None:
    model = network()
    model.conv = layer.eval()
    with pytest.raises(ValueError, match=message):
        program(model, PROFILES["ideal"], seed=0)


def test_layers_with_other_words_of_their_own_are_taken() -> None:
    model = network()
    with_words(model.fc)
    chip = program(model, PROFILES["ideal"], seed=0)
    assert off(chip(IMAGES, range(6)), digital(model)) < 1e-4


def test_a_layer_without_weights_may_occur_twice() -> None:
    """AIHWKit's own container would keep it once."""
    act = nn.Sigmoid()
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Flatten(), nn.Linear(144, 5), act).eval()
    for profile, engine in ROUTES:
        chip = program(layers, profile, seed=0, engine=engine)
        assert off(chip(IMAGES, range(6)), digital(layers)) < 1e-4


@pytest.mark.filterwarnings("ignore:layers 1 and 2 share a weight")
def test_two_layers_may_share_a_parameter() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192)).eval()
    model[2].weight = model[1].weight
    chip = program(model, PROFILES["ideal"], seed=0)
    assert off(chip(IMAGES, range(6)), digital(model)) < 1e-4
    noisy = program(model, PROFILES["wnoise"], seed=0).executable.network
    assert not torch.equal(noisy[1].weight, noisy[2].weight)


class AsksItsLayers(nn.Module):
    """Reads settings of its layers, as networks that pad for themselves do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = self.conv.kernel_size[0] - self.conv.stride[0]
        x = self.conv(nn.functional.pad(x, (0, pad, 0, pad))).flatten(1)
        return self.fc(x) / self.fc.in_features / self.conv.out_channels


def test_layers_keep_their_settings() -> None:
    model = AsksItsLayers().eval()
    for profile, engine in ROUTES:
        chip = program(model, profile, seed=0, engine=engine)
        assert off(chip(IMAGES, range(6)), digital(model)) < 1e-4


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_the_report_of_a_layer_is_without_its_hooks(engine: str) -> None:
    """A pre-hook is not applied a second time to what it gave."""
    plain = single(nn.Linear(8, 4))
    model = single(nn.Linear(8, 4))
    model.layer.register_forward_pre_hook(lambda layer, args: (args[0].square(),))
    model.layer.register_forward_hook(lambda layer, args, output: 3 * output)
    profile = Profile(ADC(6, range=6.0))
    reports = [
        layer_report(program(one, profile, seed=0, engine=engine), one, images)
        for one, images in ((plain, IMAGES.square()), (model, IMAGES))
    ]
    columns = ["snr_db", "own_snr_db"]
    np.testing.assert_allclose(reports[0][columns], reports[1][columns], rtol=1e-5)


# All at once


class OfItsOwn(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def test_all_that_does_not_map_is_told_at_once() -> None:
    blocks = [nn.Sequential(OfItsOwn(4, 4, 1), Standardised(4, 4, 3)) for _ in range(5)]
    model = nn.Sequential(*blocks, nn.Conv2d(4, 4, 3)).eval()
    with pytest.raises(ValueError, match=r"^10 layers do not map onto tiles") as told:
        program(model, PROFILES["ideal"], seed=0)
    words = str(told.value)
    assert "5 layers: 0.0, 1.0, 2.0 and 2 more (OfItsOwn) cannot be mapped" in words
    assert "5 layers: 0.1, 1.1, 2.1 and 2 more (Standardised) cannot be mapped" in words
    assert len(words) < 1000
    recipe = words[words.index("digital_layers=") + len("digital_layers=") :]
    names = eval(recipe, {"model": model})
    assert program(model, PROFILES["ideal"], seed=0, digital_layers=names).digital_layers


def test_moments_of_parametrized_weights_are_of_what_they_compute() -> None:
    plain, model = network(), network()
    parametrizations.weight_norm(model.fc)
    model.fc.register_forward_hook(doubled)
    model.eval()
    profile = Profile(wnoise=WeightNoise(0.05), memory=None)
    expected = weight_moments(plain, profile)
    for name, found in weight_moments(model, profile).items():
        torch.testing.assert_close(found.variance, expected[name].variance, rtol=1e-4, atol=0.0)


def test_the_noise_of_outputs_passes_through_hooks() -> None:
    """The margin's variance is that of a network with the hooks written as layers."""
    plain, model = network(), network()
    model.conv.register_forward_hook(lambda layer, args, output: output * output)
    plain.conv = nn.Sequential(plain.conv, Square())
    profile = Profile(ADC(6, range=20.0))
    rows = [{"image": image.permute(1, 2, 0).numpy(), "label": 0} for image in IMAGES]
    expected, found = (output_noise(one.eval(), profile, rows) for one in (plain, model))
    np.testing.assert_allclose(found["variance"], expected["variance"], rtol=1e-4)

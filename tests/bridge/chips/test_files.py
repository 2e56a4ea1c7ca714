"""Chips to disk and back: the same logits, now and later."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bridge import PROFILES, Profile, load_chip, program, save_chip
from bridge.chips import ADC, PCM, Chip, Hermes, ReRamCMO, WeightNoise
from bridge.chips.files import fingerprint
from bridge.weights import load_weights, save_weights
from tests.chips import (
    IMAGES,
    Blocks,
    changed_blocks,
    configuration,
    noisy,
    single,
    small_resnet,
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


COMPENSATED = Profile(ADC(), WeightNoise(), PCM(compensation="per_column"))


def scrambled(model: nn.Module) -> nn.Module:
    """A network of the same structure and other weights."""
    other = deepcopy(model)
    for tensor in [*other.parameters(), *other.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor)
    return other


@pytest.mark.parametrize(
    "profile",
    [*PROFILES.values(), COMPENSATED, Profile(memory=Hermes()), Profile(memory=ReRamCMO()),
     noisy("pcm_read", pcm=True)],
    ids=[*PROFILES, "compensated", "hermes", "reram_cmo", "per mvm"],
)  # fmt: skip
def test_a_chip_comes_back(network: nn.Module, profile: Profile, tmp_path: Path) -> None:
    chip = program(network, profile, seed=4, calibration=IMAGES, digital_layers=["fc"])
    path = tmp_path / "chip.safetensors"
    save_chip(path, chip)
    back = load_chip(path, scrambled(network))
    assert (back.profile, back.seed, back.engine) == (profile, 4, "fast")
    assert back.digital_layers == ("fc",)
    assert dict(back.out_bounds) == dict(chip.out_bounds)
    expected = chip(IMAGES, range(32))
    assert torch.equal(back(IMAGES, range(32)), expected)
    assert fingerprint(back) == fingerprint(chip)
    if profile.memory is not None:
        later, back_later = chip.at(86400.0), back.at(86400.0)
        assert torch.equal(back_later(IMAGES, range(32)), later(IMAGES, range(32)))
        assert not torch.allclose(later(IMAGES, range(32)), expected, rtol=1e-3)
    tiles = chip.on("aihwkit")(IMAGES[:8], range(8))
    assert torch.equal(back.on("aihwkit")(IMAGES[:8], range(8)), tiles)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_chip_of_one_s_own_configuration(tmp_path: Path) -> None:
    config = configuration(out_noise=0.06, out_noise_std=0.3, out_res=1 / 510, out_bound=4.0)
    config.noise_model.prog_noise_scale = 1.0
    model, path = single(nn.Linear(9, 5)), tmp_path / "chip.safetensors"
    chip = program(model, config, seed=0, engine="aihwkit").at(60.0)
    save_chip(path, chip)
    x = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    back = load_chip(path, single(nn.Linear(9, 5), seed=1), config)
    assert torch.equal(back(x, range(3)), chip(x, range(3)))
    assert torch.equal(back.at(1e4)(x, range(3)), chip.at(1e4)(x, range(3)))
    with pytest.raises(ValueError, match="pass it as rpu_config="):
        load_chip(path, model)
    with pytest.raises(ValueError, match=r"another configuration; of tile .*out_noise"):
        load_chip(path, model, configuration(out_res=1 / 510, out_bound=4.0))


def test_other_files_and_networks_are_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    with pytest.raises(FileNotFoundError):
        load_chip(path, network)
    save_weights(path, network.state_dict(), {"architecture": "resnet18"})
    with pytest.raises(ValueError, match="holds no chip"):
        load_chip(path, network)
    save_chip(path, program(network, PROFILES["pcm"], seed=0))
    other = small_resnet()
    other.layer2[0].conv1.stride = (1, 1)
    with pytest.raises(
        ValueError, match=r"layer layer2.0.conv1 is .*stride=\(2, 2\).*stride=\(1, 1\)"
    ):
        load_chip(path, other)
    with pytest.raises(
        ValueError, match=r"of another network: layer .* is AnalogConv2d.* and None here"
    ):
        load_chip(path, single(nn.Linear(3, 2)))


def test_fingerprints_tell_chips_apart(network: nn.Module) -> None:
    chips = [program(network, PROFILES["pcm"], seed=seed) for seed in (0, 1)]
    prints = [
        fingerprint(network),
        fingerprint(scrambled(network)),
        *[fingerprint(chip) for chip in chips],
        fingerprint(chips[0].at(60.0)),
        fingerprint(chips[0].on("aihwkit")),
        fingerprint(program(network, noisy("constant", pcm=True), seed=0)),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(program(network, PROFILES["pcm"], seed=0)) == prints[2]


def test_a_file_that_is_not_there_is_called_a_chip_s(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no chip file at .*nochip\.safetensors"):
        load_chip(tmp_path / "nochip.safetensors", network)


class Masked(nn.Module):
    """Attention with a mask of infinities, and two digital layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(1)
        x = (self.fc(x) @ x.transpose(1, 2) + self.mask).softmax(-1) @ x
        return self.two(self.one(x)).mean(1)


def test_infinite_masks_and_shared_weights_are_stored(tmp_path: Path) -> None:
    path, model = tmp_path / "chip.safetensors", Masked().eval()
    chip = program(model, PROFILES["pcm"], seed=0, digital_layers=["one", "two"])
    save_chip(path, chip)
    back = load_chip(path, scrambled(Masked().eval()))
    assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))
    assert back.analog.mask[0, 1] == -torch.inf
    assert fingerprint(back) == fingerprint(chip)


def test_non_finite_weights_are_still_refused() -> None:
    model = Masked().eval()
    model.two.bias.data[0] = torch.inf
    with pytest.raises(ValueError, match=r"non-finite weights in two\.bias"):
        program(model, PROFILES["pcm"], seed=0, digital_layers=["one", "two"])
    broken = small_resnet(width=4)
    name = next(name for name, _ in broken.named_buffers() if name.endswith("running_var"))
    broken.get_buffer(name)[0] = torch.nan
    with pytest.raises(ValueError, match=f"non-finite weights in {name}"):
        program(broken, PROFILES["pcm"], seed=0)


class BareMask(nn.Module):
    """A mask of infinities among its own parameters, alone and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 4)
        masks = [torch.tensor([0.0, 0.0, one, 0.0]) for one in (-torch.inf, 0.0)]
        self.mask = nn.Parameter(masks[0], requires_grad=False)
        self.more = nn.ParameterList([nn.Parameter(one) for one in masks])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x.flatten(1))
        return (x + self.mask).softmax(1) + (x + self.more[0]).softmax(1) + self.more[1]


def test_infinite_masks_that_are_parameters_are_stored(tmp_path: Path) -> None:
    path, model = tmp_path / "chip.safetensors", BareMask().eval()
    chip = program(model, PROFILES["pcm"], seed=0)
    save_chip(path, chip)
    back = load_chip(path, scrambled(BareMask().eval()))
    assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))
    assert fingerprint(back) == fingerprint(chip)
    for value in (torch.inf, torch.nan):
        broken = BareMask().eval()
        broken.mask.data[0] = value
        with pytest.raises(ValueError, match="non-finite weights in mask"):
            program(broken, PROFILES["pcm"], seed=0)


class Settled(Blocks):
    """With a parametrization, layers of one weight, and buffers that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(10, 10)
        nn.utils.parametrizations.weight_norm(self.one)
        self.two = self.one
        self.register_buffer("shift", torch.ones(10), persistent=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(super().forward(x)).relu() + self.shift)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Settled()


def emptied() -> nn.Module:
    model = Settled()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.fill_(torch.nan)
    return model


@pytest.mark.parametrize("make", [on_meta, emptied])
def test_a_network_without_values_is_loaded_into(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    chip = program(Settled(), COMPENSATED, seed=0, calibration=IMAGES, digital_layers=["digital"])
    save_chip(path, chip)
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    back = load_chip(path, model)
    assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))
    assert torch.equal(back.at(60.0)(IMAGES, range(32)), chip.at(60.0)(IMAGES, range(32)))
    assert fingerprint(back) == fingerprint(chip)
    for name, tensor in model.state_dict().items():
        assert tensor.is_meta == before[name].is_meta
        assert tensor.is_meta or torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7))


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "both": lambda model: AveragedModel(torch.compile(model, backend="eager")),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.long] * (one == "compile")) for one in WRAPPED],
)
def test_a_wrapped_network_s_chip_is_loaded_into_the_bare_one(name: str, tmp_path: Path) -> None:
    path, profile = tmp_path / "chip.safetensors", noisy("constant", 0.3, pcm=True)
    wrapped = WRAPPED[name](Blocks()).eval()
    for one, other in ((wrapped, Blocks()), (Blocks(), wrapped)):
        chip = program(one, profile, seed=0)
        save_chip(path, chip)
        back = load_chip(path, other)
        assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))
        assert torch.equal(back.at(60.0)(IMAGES, range(32)), chip.at(60.0)(IMAGES, range(32)))
        assert fingerprint(back) == fingerprint(chip)


def test_names_that_no_wrapper_explains_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    save_chip(path, program(nn.DataParallel(Blocks()).eval(), PROFILES["pcm"], seed=0))
    with pytest.raises(ValueError, match=r"of another network: layer module\.\w+"):
        load_chip(path, nn.Sequential(nn.Linear(4, 3)).eval())


def test_a_tensor_on_the_meta_device_that_no_file_holds_is_named(tmp_path: Path) -> None:
    path, model = tmp_path / "chip.safetensors", on_meta()
    save_chip(path, program(Settled(), PROFILES["pcm"], seed=0, digital_layers=["digital"]))
    model.one.shape = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match=r"one\.shape on the meta device is neither parameter nor"):
        load_chip(path, model)


OTHER_CODE = {
    "activation": r"layer act was ReLU\(\) and is GELU\(approximate='none'\)\)",
    "hook": r"layer norm was BatchNorm2d\(6, .*\) and is BatchNorm2d\(6, .*\) with hook halving\)",
    "pre-hook": r"layer fc was Linear\(.*\) and is Linear\(.*\) with hook <lambda>\)",
    "eps": r"layer norm was BatchNorm2d\(6, eps=1e-05.* and is BatchNorm2d\(6, eps=0.0001",
    "stride": r"layer digital was Conv2d\(.*stride=\(1, 1\).* and is .*stride=\(2, 2\)",
    "padding": r"layer digital was .* and is .*padding_mode=reflect",
    "between": r"no kind, setting or hook of a layer tells why: see the code between\)",
    "outputs": r"it gives 9 logits now and gave 10 \(",
    "fails": r"it gives no logits now \(",
}
SAVED: dict[str, Callable[[nn.Module], Chip]] = {
    "calibrated": lambda model: program(
        model, PROFILES["adc+wnoise+pcm"], seed=0, calibration=IMAGES, digital_layers=["digital"]
    ),
    "run, on AIHWKit's": lambda model: run(
        program(model, noisy("constant", 0.3), seed=0, engine="aihwkit", digital_layers=["digital"])
    ),
    "later": lambda model: run(
        program(model, COMPENSATED, seed=0, calibration=IMAGES, digital_layers=["digital"])
    ).at(3600.0),
    "never run": lambda model: program(
        model, noisy("pcm_read", 0.3, pcm=True), seed=0, digital_layers=["digital"]
    ),
}


def run(chip: Chip) -> Chip:
    chip(IMAGES[:4], range(4))
    return chip


@pytest.mark.parametrize("name", OTHER_CODE)
def test_a_network_of_other_code_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    for saved in ("calibrated", "never run"):
        chip = SAVED[saved](Blocks())
        save_chip(path, chip)
        message = rf"other code\. On \w+ inputs of its kind .*{OTHER_CODE[name]}.*: load it"
        with pytest.raises(ValueError, match=message):
            load_chip(path, changed_blocks(name))
        back = load_chip(path, scrambled(Blocks()))
        assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))


@pytest.mark.parametrize("saved", SAVED)
def test_a_network_s_code_is_known_however_it_was_saved(saved: str, tmp_path: Path) -> None:
    """With other threads and convolution algorithms, and from chip to chip."""
    path, again = tmp_path / "chip.safetensors", tmp_path / "again.safetensors"
    chip = SAVED[saved](Blocks())
    save_chip(path, chip)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        back = load_chip(path, scrambled(Blocks()))
    assert fingerprint(back) == fingerprint(chip)
    save_chip(again, back)
    assert load_weights(again)[1]["code"]["inputs"] == load_weights(path)[1]["code"]["inputs"]
    for one in (path, again):
        with pytest.raises(ValueError, match=r"a network of other code.*layer act was ReLU"):
            load_chip(one, changed_blocks("activation"))


def test_files_hold_no_one_s_images(tmp_path: Path) -> None:
    sizes = []
    for number, model in enumerate((Blocks(), Blocks())):
        path = tmp_path / f"{number}.safetensors"
        chip = program(model, PROFILES["pcm"], seed=0)
        if number:
            chip(torch.rand(3, 3, 200, 200), range(3))
        save_chip(path, chip)
        sizes.append(path.stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 2000


def test_files_of_earlier_versions_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    chip = SAVED["never run"](Blocks())
    save_chip(path, chip)
    tensors, header = load_weights(path)
    del header["code"]
    save_weights(path, tensors, header)
    load_chip(path, changed_blocks("activation"))
    back = load_chip(path, Blocks())
    assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))


class OfOneSize(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (9, 9)
        return super().forward(x)


def test_what_no_input_is_known_for_is_told_by_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    chip = SAVED["never run"](OfOneSize())
    save_chip(path, chip)
    other = OfOneSize()
    other.act = nn.GELU()
    with pytest.warns(UserWarning, match=r"no logits by which.*layer act was ReLU\(\) and is GELU"):
        load_chip(path, other.eval())
    load_chip(path, OfOneSize())
    chip(torch.rand(4, 3, 9, 9), range(4))
    save_chip(path, chip)
    with pytest.raises(ValueError, match=r"other code.*layer act was ReLU"):
        load_chip(path, other.eval())


INPUTS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "vectors": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh()), torch.rand(3, 7)),
    "flattened": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh()),
        torch.rand(3, 3, 4, 4),
    ),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(80, 2)),
        torch.rand(3, 16, 6),
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Embedding(20, 6), nn.Linear(6, 5), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)
        ),
        torch.randint(0, 20, (3, 16)),
    ),
    "digits": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(98, 3)),
        torch.rand(3, 1, 28, 28),
    ),
}


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs_than_images(name: str, seen: bool, tmp_path: Path) -> None:
    path, (make, inputs) = tmp_path / "chip.safetensors", INPUTS[name]
    with torch.random.fork_rng(devices=[]):
        model = make().eval()
        model(inputs)
    left = [path for path, layer in model.named_modules() if isinstance(layer, nn.Embedding)]
    chip = program(model, PROFILES["pcm"], seed=0, digital_layers=left)
    if seen:
        chip(inputs, range(3))
    save_chip(path, chip)
    back = load_chip(path, scrambled(model))
    assert torch.equal(back(inputs, range(3)), chip(inputs, range(3)))
    other = deepcopy(model)
    where = next(name for name, layer in model.named_children() if isinstance(layer, nn.Tanh))
    setattr(other, where, nn.Sigmoid().eval())
    with pytest.raises(ValueError, match=rf"other code.*layer {where} was Tanh\(\) and is Sigm"):
        load_chip(path, other)

"""What a chip's copy of a network loses: what code knows by the original's layers."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, load_chip, predict, program, save_chip
from bridge.chips import ADC, Clipping, layer_report, output_noise, weight_moments
from bridge.chips.tiles import named_layers
from tests.chips import noisy

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = range(8)
EXACT = [PROFILES["ideal"], noisy("constant", 1e-7), Profile(ADC(22))]
INEXACT = [PROFILES["wnoise+pcm"], Profile(clipping=Clipping("layer_gaussian", 1.0))]


def network() -> Any:
    made = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 5))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 5
    return made.eval().requires_grad_(False)


MASK = (torch.arange(64) % 2).float()


def by_module(masks: Any) -> Callable[..., Any]:
    def masked() -> nn.Module:
        made = network()
        masks[made[1]] = MASK
        made[1].register_forward_hook(lambda layer, args, out: out * masks.get(layer, 1.0))
        return made

    return masked


def by_number() -> nn.Module:
    made, masks = network(), {}
    masks[id(made[1])] = MASK
    made[1].register_forward_hook(
        lambda layer, args, out: out * masks[id(layer)] if id(layer) in masks else out
    )
    return made


def by_module_that_must_be_there() -> nn.Module:
    made, masks = network(), {}
    masks[made[1]] = MASK
    made[1].register_forward_hook(lambda layer, args, out: out * masks[layer])
    return made


LOST: dict[str, Callable[[], nn.Module]] = {
    "a dictionary": by_module({}),
    "a weak dictionary": by_module(weakref.WeakKeyDictionary()),
    "numbers of objects": by_number,
    "a dictionary that fails": by_module_that_must_be_there,
}


@pytest.mark.parametrize("profile", EXACT + INEXACT)
@pytest.mark.parametrize("name", LOST)
def test_what_a_copy_loses_is_refused(name: str, profile: Profile) -> None:
    message = r"a copy of the model (gives other logits|fails \(KeyError).* let it use self"
    with pytest.raises(ValueError, match=message):
        program(LOST[name](), profile, seed=0, calibration=IMAGES)(IMAGES, NUMBERS)


@pytest.mark.parametrize("name", ["a dictionary", "numbers of objects"])
def test_reports_refuse_what_a_copy_loses(name: str) -> None:
    profile = Profile(ADC(range=20.0))
    message = "a copy of the model gives other logits"
    model = LOST[name]()
    with pytest.raises(ValueError, match=message):
        layer_report(program(model, profile, seed=0), model, IMAGES)
    with pytest.raises(ValueError, match=message):
        output_noise(model, profile, (IMAGES.permute(0, 2, 3, 1).numpy(), np.zeros(8, int)))


class Gained(nn.Module):
    """Reads an attribute of a layer, by a name with an underscore, if it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.body[1]._gain = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x) * getattr(self.body[1], "_gain", 1.0)
        return found


def with_a_private_mask() -> nn.Module:
    made = network()
    made[1]._mask = MASK
    made[1].register_forward_hook(
        lambda layer, args, out: out * layer._mask if hasattr(layer, "_mask") else out
    )
    return made


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("make", [Gained, with_a_private_mask])
def test_private_attributes_of_layers_come_along(
    make: Callable[[], nn.Module], engine: Any
) -> None:
    model = make().eval()
    with torch.no_grad():
        expected = model(IMAGES)
    for profile in EXACT:
        chip = program(model, profile, seed=0, calibration=IMAGES, engine=engine)
        torch.testing.assert_close(chip(IMAGES, NUMBERS), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("profile", EXACT + INEXACT)
def test_copies_that_compute_the_same_are_taken(profile: Profile) -> None:
    model = network()
    program(model, profile, seed=0, calibration=IMAGES)(IMAGES, NUMBERS)


def changed_weights(model: Any) -> None:
    model[1].weight.data.mul_(2)


def other_weights(model: Any) -> None:
    model[1].weight = nn.Parameter(torch.zeros(64, 192))


def loaded(model: Any) -> None:
    model.load_state_dict({name: one + 1 for name, one in model.state_dict().items()})


CHANGES: dict[str, Callable[[Any], object]] = {
    "weights": changed_weights,
    "another parameter": other_weights,
    "a checkpoint": loaded,
    "training mode": lambda model: model.train(),
    "a hook": lambda model: model[1].register_forward_hook(lambda layer, args, out: out * 2),
    "a layer": lambda model: model.append(nn.Softmax(1).eval()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_may_change_once_a_chip_is_made_of_it(name: str) -> None:
    model = network()
    with torch.no_grad():
        expected = model(IMAGES)
    chip = program(model, PROFILES["ideal"], seed=0)
    CHANGES[name](model)
    torch.testing.assert_close(chip(IMAGES, NUMBERS), expected)


def test_a_chip_lets_go_of_the_model_at_its_first_images() -> None:
    model = network()
    gone = weakref.ref(model)
    chip = program(model, PROFILES["pcm"], seed=0)
    later = copy.deepcopy(chip.analog), chip.at(60.0)
    del model
    gc.collect()
    assert gone() is not None
    chip(IMAGES, NUMBERS)
    gc.collect()
    assert gone() is None
    assert later[1](IMAGES, NUMBERS).shape == (8, 5)


class Notes(nn.Module):
    """Counts its passes, and keeps its last features; neither decides anything."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.features = network(), None
        self.register_buffer("passes", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        found: torch.Tensor = self.body(x)
        self.features = self.last = found
        return found


def test_the_first_images_leave_the_model_as_it_is() -> None:
    model = Notes().eval()
    state = {name: one.clone() for name, one in model.state_dict().items()}
    program(model, PROFILES["wnoise+pcm"], seed=0)(IMAGES, NUMBERS)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert model.features is None
    assert model.last is model.get_buffer("last")


def test_chips_are_loaded_into_networks_of_other_weights(tmp_path: Any) -> None:
    chip = program(network(), PROFILES["pcm"], seed=0)
    save_chip(tmp_path / "chip.safetensors", chip)
    other = network()
    changed_weights(other)
    found = load_chip(tmp_path / "chip.safetensors", other)
    assert torch.equal(found(IMAGES, NUMBERS), chip(IMAGES, NUMBERS))


def test_what_runs_a_chip_is_pickled_without_the_model() -> None:
    model = network()
    chip = program(model, PROFILES["pcm"], seed=0)
    model.more = nn.Linear(1000, 1000)  # which the chip does not have
    stored = pickle.dumps(chip.executable)
    assert len(stored) < 1_000_000
    assert torch.equal(pickle.loads(stored)(IMAGES, NUMBERS), chip.executable(IMAGES, NUMBERS))


class Tied(nn.Module):
    """Attention, a convolution of signals and weight normalisation: other layers on a chip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = (
            nn.Conv1d(3, 8, 3),
            nn.MultiheadAttention(8, 2, batch_first=True),
        )
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.flatten(2)).transpose(1, 2)
        found: torch.Tensor = self.fc(self.attention(x, x, x)[0].mean(1))
        return found


@pytest.mark.parametrize("profile", [PROFILES["ideal"], *INEXACT])
def test_layers_of_other_names_on_a_chip_are_compared_too(profile: Profile) -> None:
    rows = (IMAGES.permute(0, 2, 3, 1).numpy(), np.zeros(8, int))
    predict(program(Tied(), profile, seed=0), rows)
    model = Tied()
    model.fc.register_forward_hook(lambda layer, args, out: out * SCALES.get(layer, 1.0))
    SCALES[model.fc] = 2.0
    with pytest.raises(ValueError, match="a copy of the model gives other logits"):
        predict(program(model, profile, seed=0), rows)


SCALES: dict[Any, float] = {}


NAMES = [
    *("name", "noise", "convolution", "layer", "tiles", "kernels", "out_size", "variance_weight"),
    *("images", "output_variances", "scale", "seed", "_chip", "_layer"),
]


@pytest.mark.parametrize("where", ["conv", "fc"])
@pytest.mark.parametrize("name", NAMES)
def test_attributes_of_any_name_stay_the_user_s(name: str, where: str) -> None:
    model: Any = Named()
    layer = model.get_submodule(where)
    setattr(layer, name, "stem")
    layer.register_forward_hook(
        lambda layer, args, out: out * 2 if getattr(layer, name, "") == "stem" else out
    )
    with torch.no_grad():
        expected = model(IMAGES)
    for profile in (*EXACT, noisy("pcm_read", 1e-7)):
        chip = program(model, profile, seed=0, calibration=IMAGES)
        torch.testing.assert_close(chip(IMAGES, NUMBERS), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["analog_module", "input_size"])
def test_attributes_with_names_of_aihwkit_s_are_refused_where_they_matter(name: str) -> None:
    model: Any = Named()
    setattr(model.conv, name, "stem")
    model.conv.register_forward_hook(
        lambda layer, args, out: out * 2 if getattr(layer, name, "") == "stem" else out
    )
    with pytest.raises(ValueError, match="a copy of the model gives other logits"):
        program(model, PROFILES["wnoise"], seed=0)(IMAGES, NUMBERS)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return found


class Frozen(nn.Sequential):
    """Shared by all copies of a network."""

    def __deepcopy__(self, memo: dict) -> "Frozen":
        return self


@pytest.mark.parametrize("profile", [PROFILES["pcm"], Profile(ADC())])
def test_models_that_are_their_own_copy_are_refused(profile: Profile) -> None:
    body = Frozen(nn.Flatten(), nn.Linear(192, 64), nn.ReLU())
    model = nn.Sequential(body, nn.Linear(64, 5)).eval()
    expected = model(IMAGES)
    with pytest.raises(
        ValueError, match=r"layer 0 \(Frozen\) is its own copy, by its __deepcopy__"
    ):
        program(model, profile, seed=0, calibration=IMAGES)
    assert torch.equal(model(IMAGES), expected)
    model[0] = nn.Sequential(*body, Frozen(nn.ReLU()))  # without weights it may be shared
    program(model.eval(), profile, seed=0, calibration=IMAGES)(IMAGES, NUMBERS)


def test_layers_that_are_compiled_one_by_one_are_taken() -> None:
    plain, model = Named(), Named()
    for one in (plain, model):
        one.conv.register_forward_hook(lambda layer, args, out: out + 1)
    model.conv = torch.compile(model.conv, backend="eager")
    for profile in (*EXACT, *INEXACT):
        there, here = (
            program(one.eval(), profile, seed=0, calibration=IMAGES) for one in (plain, model)
        )
        assert torch.equal(there(IMAGES, NUMBERS), here(IMAGES, NUMBERS))
    for name in ("conv", "conv._orig_mod"):
        chip = program(model, PROFILES["pcm"], seed=0, digital_layers=[name])
        assert list(named_layers(chip.analog)) == ["fc"]
        chip(IMAGES, NUMBERS)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_what_compile_made_of_a_layer_are_refused(register: str) -> None:
    model = Named()
    model.conv = torch.compile(model.conv, backend="eager")
    getattr(model.conv, register)(lambda *args: None)
    with pytest.raises(
        ValueError, match=r"hook of layer conv is on what torch.compile .* _orig_mod"
    ):
        program(model.eval(), PROFILES["pcm"], seed=0)


def test_tables_of_layers_that_are_compiled_one_by_one(tmp_path: Any) -> None:
    plain, model = Named(), Named()
    model.conv = torch.compile(model.conv, backend="eager")
    model.eval()
    rows = (IMAGES.permute(0, 2, 3, 1).numpy(), np.zeros(8, int))
    chip = program(model, PROFILES["pcm"], seed=0)
    expected = layer_report(program(plain, PROFILES["pcm"], seed=0), plain, IMAGES)
    assert layer_report(chip, model, IMAGES).equals(expected)
    for one in (model, plain):
        save_chip(tmp_path / "chip.safetensors", chip)
        assert torch.equal(
            load_chip(tmp_path / "chip.safetensors", one)(IMAGES, NUMBERS), chip(IMAGES, NUMBERS)
        )
    noise = [output_noise(one, Profile(ADC(range=20.0)), rows) for one in (model, plain)]
    assert noise[0].equals(noise[1])
    there, here = (weight_moments(one, PROFILES["pcm"]) for one in (plain, model))
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name].variance, here[name].variance) for name in there)


class Writer:
    """Collects features, as what writes logs does."""

    def __init__(self) -> None:
        self.lock, self.seen = Lock(), list[float]()

    def note(self, layer: nn.Module, args: tuple, out: torch.Tensor) -> None:
        self.seen.append(float(out.mean()))


def test_hooks_that_cannot_be_copied_are_told_with_the_cure() -> None:
    model = Named()
    handle = model.conv.register_forward_hook(Writer().note)
    with pytest.raises(ValueError, match=r"a hook of layer conv holds .* handle\.remove\(\)"):
        program(model, PROFILES["pcm"], seed=0)
    handle.remove()
    program(model, PROFILES["pcm"], seed=0)


class InAPlainList(Named):
    def __init__(self) -> None:
        super().__init__()
        self.order = [self.conv, self.fc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.order[1](self.order[0](x).relu().mean((2, 3)))
        return found


class CompilesItsForward(Named):
    def __init__(self) -> None:
        super().__init__()
        self.forward = torch.compile(self.forward, backend="eager")  # type: ignore[method-assign]


class ReadsItsState(Named):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.fc.state_dict()["weight"].ndim


@pytest.mark.parametrize("kind", [InAPlainList, CompilesItsForward])
def test_layers_that_are_called_by_other_ways_are_told_with_the_cure(kind: Any) -> None:
    message = r"does not call it.*nn\.ModuleList.*torch\.compile\(model\)"
    for profile in (PROFILES["pcm"], Profile(ADC())):
        with pytest.raises(ValueError, match=message):
            program(kind(), profile, seed=0, calibration=IMAGES).examine(IMAGES)


def test_code_that_reads_the_state_of_a_layer_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"fails on tiles \(KeyError: 'weight'\).* can be read"):
        program(ReadsItsState(), Profile(ADC()), seed=0, calibration=IMAGES)


def test_state_of_an_earlier_batch_is_told_of() -> None:
    class Sums(Named):
        total: Any = 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total = self.total + super().forward(x)
            return self.total

    model = Sums()
    model(IMAGES.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="reset state that it keeps of an earlier batch"):
        predict(program(model, PROFILES["pcm"], seed=0), (ROWS, np.zeros(8, int)))


ROWS = IMAGES.permute(0, 2, 3, 1).numpy()


class InBfloat16(Tied):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize("seed", range(3))
def test_networks_that_compute_in_bfloat16_are_taken(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = InBfloat16()
    for profile in (PROFILES["ideal"], *INEXACT):
        program(model, profile, seed=0).examine(IMAGES)

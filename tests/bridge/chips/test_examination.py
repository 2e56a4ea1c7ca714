"""What the first images show: samples that depend on their batch, and weights on no tile."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bridge import PROFILES, Profile, Router, predict, program, to_jax
from bridge.chips import ADC, Clipping
from bridge.chips.evaluation import require_independent, require_same_in_batch
from tests.chips import TorchCopies, noisy, small_resnet

IMAGES = np.random.default_rng(4).normal(size=(5, 6, 6, 3)).astype(np.float32)
ROWS = [{"image": image, "label": n % 4, "index": n} for n, image in enumerate(IMAGES)]
TENSOR = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
ADC_9 = Profile(ADC())


class Net(nn.Module):
    """A small network, with `between` the features and the readout, and `after` the logits."""

    def __init__(self, between: Callable[[Any], Any] = lambda x: x, after: Any = lambda x: x):
        super().__init__()
        self.between, self.after = between, after
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(128, 4)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.fc(self.between(self.conv(x).relu().flatten(1))))


def attention_along_the_batch(x: torch.Tensor) -> torch.Tensor:
    return x + (x @ x.T / 100).softmax(-1) @ x


MIXING: dict[str, Callable[[], nn.Module]] = {
    "batch mean": lambda: Net(lambda x: x - x.mean(0)),
    "batch norm as a function": lambda: Net(lambda x: F.batch_norm(x, None, None, training=True)),
    "largest of the batch": lambda: Net(lambda x: x / x.max()),
    "softmax over the batch": lambda: Net(after=lambda x: x.softmax(0)),
    "attention": lambda: Net(attention_along_the_batch),
    "the neighbour": lambda: Net(lambda x: x + x.roll(1, 0)),
    "the opposite row": lambda: Net(lambda x: x + x.flip(0)),
    "a little": lambda: Net(after=lambda x: x + 1e-4 * x.mean(0)),
    "ranks": lambda: Net(after=lambda x: x + 0.01 * x.argsort(0)),
}
ELSEWHERE: dict[str, Callable[[], nn.Module]] = {
    "batch size": lambda: Net(lambda x: x / len(x)),
    "place": lambda: Net(after=lambda x: x + torch.arange(len(x))[:, None]),
    "dropout": lambda: Net(lambda x: F.dropout(x, 0.5, training=True)),
    "noise": lambda: Net(after=lambda x: x + 0.01 * torch.randn_like(x)),
}


@pytest.mark.parametrize("name", MIXING)
def test_networks_that_mix_the_samples_of_a_batch_are_refused(name: str) -> None:
    model = MIXING[name]()
    for batch_size in (4,) if "norm" in name else (1, 4):  # PyTorch refuses one itself
        with pytest.raises(ValueError, match=r"the module mixes the samples of a batch"):
            predict(model, ROWS, batch_size=batch_size)
    for profile in (PROFILES["pcm"], noisy("constant", 0.1)):
        chip = program(model, profile, seed=0)
        with pytest.raises(ValueError, match=r"the network mixes the samples of a batch"):
            predict(chip, ROWS)
        with pytest.raises(ValueError, match=r"the network mixes the samples of a batch"):
            chip(TENSOR, range(5))
    with pytest.raises(ValueError, match=r"the network mixes the samples of a batch"):
        program(model, ADC_9, seed=0, calibration=IMAGES)
    router = Router(model, program(Net(), PROFILES["ideal"], seed=0), threshold=np.inf)
    with pytest.raises(ValueError, match=r"the digital model mixes the samples of a batch"):
        router(IMAGES)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_networks_that_do_not_treat_a_sample_always_alike_are_refused(name: str) -> None:
    model = ELSEWHERE[name]()
    with pytest.raises(ValueError, match=r"the module gives one image different logits"):
        predict(model, ROWS)
    with pytest.raises(ValueError, match=r"the network gives one image different logits"):
        predict(program(model, PROFILES["pcm"], seed=0), ROWS)


def test_images_that_are_all_alike_show_it_too() -> None:
    rows = [{**ROWS[0], "index": n} for n in range(3)]
    with pytest.raises(ValueError, match=r"the module mixes the samples of a batch"):
        predict(MIXING["attention"](), rows)


class InPlace(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(0.5))


class Scaled(Net):
    """Brings a batch to one range, which images of one range do not show."""

    def __init__(self, to_range: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.to_range = to_range

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.to_range(x))


TO_RANGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "least and largest": lambda x: (x - x.min()) / (x.max() - x.min()),
    "largest": lambda x: x / x.amax(),
    "largest magnitude": lambda x: x / x.abs().max(),
    "least": lambda x: x - x.min(),
    "if beyond 1": lambda x: x / 255 if x.max() > 1 else x,
    "if beyond 2": lambda x: x / 255 if x.max() > 2 else x,
    "if below -5": lambda x: x / 255 if x.min() < -5 else x,
    "if all are dark": lambda x: 4 * x if x.max() < 0.5 else x,
    "if each is beyond 5": lambda x: x / 255 if x.amax((1, 2, 3)).min() > 5 else x,
}


@pytest.mark.parametrize("name", TO_RANGE)
def test_scaling_over_the_batch_is_seen_of_images_of_one_range(name: str) -> None:
    low, high = IMAGES.min((1, 2, 3), keepdims=True), IMAGES.max((1, 2, 3), keepdims=True)
    images = (IMAGES - low) / (high - low)
    rows = [{**row, "image": image} for row, image in zip(ROWS, images, strict=True)]
    model = Scaled(TO_RANGE[name])
    with pytest.raises(ValueError, match=r"the module mixes the samples of a batch"):
        predict(model, rows)
    with pytest.raises(ValueError, match=r"the network mixes the samples of a batch"):
        predict(program(model, PROFILES["pcm"], seed=0), rows)


class Leaves(Net):
    """Stops at an earlier exit where all images of the batch are sure there."""

    def __init__(self) -> None:
        super().__init__()
        self.exit, self.sure = nn.Linear(3, 4), 0.0
        self.exit.weight.data = 3 * torch.eye(4, 3)

    def chances(self, x: torch.Tensor) -> torch.Tensor:
        return self.exit(x.amax((2, 3))).softmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exit = self.chances(x)
        return exit if exit.amax(1).min() > self.sure else super().forward(x)


def test_an_exit_that_a_whole_batch_takes_is_seen_whatever_the_images() -> None:
    with torch.no_grad():
        model = Leaves().eval()
        model.sure = float(model.chances(TENSOR).amax(1).max())  # of more than all of them
        with pytest.raises(ValueError, match=r"the network mixes the samples of a batch"):
            require_independent(model, TENSOR, "the network")


class Crowded(Net):
    """Computes otherwise with many images at once, as experts of limited capacity do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / x.abs().max() if len(x) > 8 else x)


def test_a_batch_larger_than_those_tried_is_compared_with_a_few_of_its_samples() -> None:
    rows = [{**row, "index": n} for n, row in enumerate(4 * ROWS)]
    predict(Crowded().eval(), rows, batch_size=8)
    with pytest.raises(ValueError, match=r"the module gives one image different logits"):
        predict(Crowded().eval(), rows)
    chip = program(Crowded().eval(), PROFILES["pcm"], seed=0)
    with pytest.raises(ValueError, match=r"the network gives one image different logits"):
        predict(chip, rows)


class Experts(Net):
    """A mixture of experts, of which each has room for four samples of a batch, or more."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(2)
            self.experts = nn.ModuleList(nn.Linear(128, 128) for _ in range(3))
            self.gate = nn.Linear(128, 3)
        self.between, self.roomy = self.routed, False
        self.eval().requires_grad_(False)

    def routed(self, x: torch.Tensor) -> torch.Tensor:
        room = len(x) if self.roomy else max(4, len(x) // 3)
        chances = self.gate(x).softmax(1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            places = (chances.argmax(1) == number).nonzero()[:room, 0]
            mixed[places] = expert(x[places]) * chances[places, number : number + 1]
        return x + mixed


def test_experts_without_room_for_a_batch_s_last_samples_are_refused() -> None:
    images = np.random.default_rng(0).normal(size=(48, 6, 6, 3)).astype(np.float32)
    model, samples = Experts(), (images, np.arange(48) % 4)
    tensor = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    off = (model(tensor) - torch.cat([model(two) for two in tensor.split(2)])).abs().amax(1)
    assert off[:16].max() < 1e-5 < 1e-2 < off.max()  # the first ones have room
    for network in (model, program(model, PROFILES["pcm"], seed=0)):
        with pytest.raises(ValueError, match=r"gives one image different logits"):
            predict(network, samples)
    roomy = Experts()
    roomy.roomy = True
    assert len(predict(program(roomy, PROFILES["pcm"], seed=0), samples)) == 48


def test_rounding_in_a_large_batch_is_no_mixing() -> None:
    """The network makes much of it: as much as of images that move by four units."""
    network = Net(lambda x: torch.sin(1e5 * x))
    images = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = network(images)
    rounded = network(images * (1 + 4 * torch.finfo(torch.float32).eps))
    assert (rounded - whole).abs().max() > 1e-3 * whole.abs().max()
    require_same_in_batch(network, images, rounded, "the network")
    off = 20 * (rounded - whole).abs().max() * (torch.arange(32) == 31)[:, None]
    with pytest.raises(ValueError, match=r"different logits .* or experts without room"):
        require_same_in_batch(network, images, whole + off, "the network")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_equal_images_are_no_mixing_of_a_batch(count: int) -> None:
    samples = (np.repeat(IMAGES[:1], count, 0), np.arange(count) % 4)
    for network in (Net(), program(Net(), PROFILES["ideal"], seed=0)):
        logits = np.stack(predict(network, samples)["logits"].to_numpy())
        np.testing.assert_allclose(logits, np.repeat(logits[:1], count, 0), rtol=1e-5, atol=1e-6)


def within(x: torch.Tensor) -> torch.Tensor:
    """What takes images of some range only."""
    if float(x.abs().max()) > float(TENSOR.abs().max()):
        raise AssertionError("images must be normalised")
    return x


HONEST: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "constant": lambda: Net(after=torch.zeros_like),
    "cancelling": lambda: Net(after=lambda x: (x + 1e4) - 1e4),
    "quantised": lambda: Net(lambda x: (x * 7).round() / 7, lambda x: (x * 3e6).round() / 1e6),
    "squeezed": lambda: Net(lambda x: x[:, :, None, None].squeeze()),
    "a batch of its own": lambda: Net(lambda x: torch.cat([x, -x]).relu()[: len(x)]),
    "in place": lambda: Net(lambda x: x.mul_(2), lambda x: x.mul_(3)),
    "its input in place": InPlace,
    "images of a range": lambda: Scaled(within),
    "each to its range": lambda: Scaled(lambda x: x / x.amax((1, 2, 3), keepdim=True)),
    "clipped": lambda: Scaled(lambda x: x.clamp(-1, 1)),
    "exponential": lambda: Scaled(lambda x: x.mul(4).exp()),
    "resnet": lambda: small_resnet(width=4),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("profile", [PROFILES["ideal"], noisy("pcm_read", 0.1), ADC_9])
def test_honest_networks_are_taken(name: str, profile: Profile) -> None:
    model = HONEST[name]()
    expected = predict(model, ROWS, batch_size=5)
    chip = program(model, profile, seed=0, calibration=IMAGES)
    state = torch.get_rng_state()
    found = predict(chip, ROWS, batch_size=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert found["index"].equals(expected["index"])
    if profile is PROFILES["ideal"]:
        actual, wanted = (np.stack(one["logits"].to_numpy()) for one in (found, expected))
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_a_chip_is_examined_once() -> None:
    calls = []
    model = Net(lambda x: calls.append(len(x)) or x)  # type: ignore[func-returns-value]
    chip = program(model, PROFILES["pcm"], seed=0)
    predict(chip, ROWS)
    before = len(calls)
    assert sum(calls) < 65
    for later in (chip, chip.at(60.0), chip.on("aihwkit")):
        predict(later, ROWS)
    assert len(calls) == before + 3


def test_an_examination_copies_no_more_than_it_looks_at() -> None:
    chip = program(Net(), PROFILES["pcm"], seed=0)
    images = torch.randn(400, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with TorchCopies() as copies:
        chip.examine(images)
    assert 0 < copies.largest < images.numel() / 5


# Weights on no tile


class Parts(Net):
    """Its weights, used in ways beside its layers."""

    def __init__(self, how: Callable[[Any, torch.Tensor], torch.Tensor]):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            self.w = nn.Parameter(torch.randn(128, 128) / 10)
            self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
            self.table = nn.Embedding(4, 128)
            self.scale = nn.Parameter(torch.rand(128))
            self.listed = nn.ParameterList([torch.randn(128, 128) / 10])
            self.how = how
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)


def features(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.conv(x).relu().flatten(1)


BESIDE: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], str]] = {
    "matmul": (lambda n, x: n.fc(features(n, x) @ n.w), "w"),
    "of a list": (lambda n, x: n.fc(features(n, x) @ n.listed[0]), r"listed\.0"),
    "from the left": (lambda n, x: n.fc((n.w.T @ features(n, x).T).T), "w"),
    "einsum": (lambda n, x: n.fc(torch.einsum("ni,io->no", features(n, x), n.w)), "w"),
    "bmm": (
        lambda n, x: n.fc((features(n, x)[:, None] @ n.w[None].expand(len(x), -1, -1))[:, 0]),
        "w",
    ),
    "addmm": (lambda n, x: n.fc(torch.addmm(n.scale, features(n, x), n.w)), "w"),
    "mv": (lambda n, x: n.fc(features(n, x)) + (features(n, x) @ n.scale)[:, None], "scale"),
    "of a computed weight": (
        lambda n, x: n.fc(features(n, x) @ (F.normalize(n.w) * n.scale).T.contiguous()),
        "w",
    ),
    "linear": (lambda n, x: F.linear(features(n, x), n.fc.weight, n.fc.bias), r"fc\.weight"),
    "linear and the layer": (
        lambda n, x: n.fc(features(n, x)) + F.linear(features(n, x), n.fc.weight),
        r"fc\.weight",
    ),
    "conv2d": (lambda n, x: n.fc(F.conv2d(x, n.conv.weight).flatten(1)), r"conv\.weight"),
    "conv2d of its own": (
        lambda n, x: n.fc(features(n, x) + F.conv2d(x, n.kernel).flatten(1)),
        "kernel",
    ),
    "tied": (
        lambda n, x: n.fc(features(n, x)) + features(n, x) @ n.table.weight.T,
        r"table\.weight",
    ),
    "attention to learned keys": (
        lambda n, x: n.fc(
            F.scaled_dot_product_attention(features(n, x)[:, None], n.w[None], n.w[None])[:, 0]
        ),
        "w",
    ),
    "a sum written out": (lambda n, x: n.fc((features(n, x)[:, None] * n.w).sum(-1)), "w"),
    "in place": (
        lambda n, x: n.fc(torch.mm(features(n, x), n.w, out=torch.empty(len(x), 128))),
        "w",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_weights_on_no_tile_are_refused(name: str) -> None:
    how, weight = BESIDE[name]
    model = Parts(how)
    message = rf"the network multiplies with .*{weight}.* outside of a layer on tiles"
    left = ["table"]
    for profile, engine in (
        (PROFILES["pcm"], "fast"),
        (noisy("constant"), "fast"),
        (PROFILES["pcm"], "aihwkit"),
    ):
        chip = program(model, profile, seed=0, engine=engine, digital_layers=left)
        with pytest.raises(ValueError, match=message):
            predict(chip, ROWS)
        with pytest.raises(ValueError, match=message):
            chip(TENSOR, range(5))
    with pytest.raises(ValueError, match=message):
        program(model, ADC_9, seed=0, calibration=IMAGES, digital_layers=left)


@pytest.mark.parametrize(
    "name", ["matmul", "of a list", "conv2d of its own", "tied", "a sum written out", "linear"]
)
def test_a_parameter_may_be_left_digital_by_its_name(name: str) -> None:
    how, weight = BESIDE[name]
    model = Parts(how)
    expected = predict(model, ROWS)
    named = {"linear": "fc", "of a list": "listed"}.get(name) or weight.replace("\\", "")
    for profile in (PROFILES["ideal"], Profile(ADC(22))):
        chip = program(model, profile, seed=0, calibration=IMAGES, digital_layers=["table", named])
        actual = np.stack(predict(chip, ROWS)["logits"].to_numpy())
        np.testing.assert_allclose(actual, np.stack(expected["logits"].to_numpy()), atol=1e-3)
    with pytest.raises(ValueError, match=r"the model has no layers 'v'"):
        program(model, PROFILES["pcm"], seed=0, digital_layers=["v"])


@pytest.mark.parametrize("examined_by", ["predict", "calibration"])
def test_a_network_from_another_chip_is_examined_anew(examined_by: str) -> None:
    """That chip may have left digital what this one has on no tile."""
    model = Parts(BESIDE["matmul"][0])
    left = ["table", "w"]
    profile = ADC_9 if examined_by == "calibration" else PROFILES["pcm"]
    chip = program(model, profile, seed=0, calibration=IMAGES, digital_layers=left)
    predict(chip, ROWS)
    with pytest.raises(ValueError, match=r"multiplies with w outside of a layer on tiles"):
        predict(program(chip.analog, PROFILES["pcm"], seed=0), ROWS)
    with pytest.raises(ValueError, match=r"multiplies with w outside of a layer on tiles"):
        program(chip.analog, ADC_9, seed=0, calibration=IMAGES)


class Unlisted(Parts):
    """Some of its layers are called by ways that a copy's tiles do not know."""

    def __init__(self, way: str):
        super().__init__(lambda n, x: n.fc(n.mix(n.side(features(n, x)))))
        outside = nn.Linear(128, 128).eval()
        self.side = nn.Linear(128, 128).eval()
        self.mix: Any = lambda x: x
        if way == "a plain list":
            self.several = [outside]
            self.how = lambda n, x: n.fc(n.several[0](n.side(features(n, x))))
        elif way == "a parameter in a plain list":
            self.several = [outside.weight]
            self.how = lambda n, x: n.fc(n.side(features(n, x)) @ n.several[0])
        elif way == "a second name in a list":
            self.several = [self.side]
            self.how = lambda n, x: n.fc(n.several[0](n.side(features(n, x))))
        elif way == "a lambda":
            self.mix = lambda x: self.side(x)
        elif way == "its forward by another name":
            self.mix = self.side.forward
        elif way == "outside, by a hook":
            self.side.register_forward_hook(lambda layer, args, output: outside(output))
        elif way == "by a partial":
            self.conv.register_forward_hook(partial(_through, self.side))
        elif way == "by a list in a hook":
            several = [self]
            self.side.register_forward_hook(
                lambda layer, args, output: F.linear(output, several[0].side.weight)
            )


def _through(side: nn.Module, layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return side(output.flatten(1)).view_as(output)


UNLISTED = [
    *("a plain list", "a parameter in a plain list", "a second name in a list", "a lambda"),
    *("its forward by another name", "outside, by a hook", "by a partial", "by a list in a hook"),
]


@pytest.mark.parametrize("way", UNLISTED)
def test_weights_that_the_network_does_not_list_are_refused(way: str) -> None:
    model = Unlisted(way)
    message = "multiplies with parameters that it does not list"
    with pytest.raises(ValueError, match=message):
        predict(program(model, PROFILES["pcm"], seed=0, digital_layers=["table"]), ROWS)
    with pytest.raises(ValueError, match=message):
        program(model, ADC_9, seed=0, calibration=IMAGES, digital_layers=["table"])


WRITES: dict[str, Callable[[Any], None]] = {
    "from a copy": lambda fc: fc.weight.data.copy_((fc.full * 64).round() / 64),
    "rounded": lambda fc: setattr(fc.weight, "data", (fc.weight.data * 8).round() / 8),
    "a mask": lambda fc: fc.weight.data.mul_(fc.full > 0),
    "a limit": lambda fc: fc.weight.data.clamp_(-float(fc.full.max()), float(fc.full.max())),
    "a norm": lambda fc: fc.weight.data.div_(fc.weight.data.norm()),
    "another parameter": lambda fc: setattr(fc, "weight", nn.Parameter(fc.full.clone())),
}


def writing(name: str, *, restored: bool = False) -> nn.Module:
    model: Any = Net()
    model.fc.full = model.fc.weight.detach().clone()
    with torch.no_grad():
        WRITES[name](model.fc)  # so that what it writes is what is there
    kept = []

    def write(layer: Any, args: tuple) -> None:
        kept.append(layer.weight.data.clone())
        WRITES[name](layer)

    def restore(layer: Any, args: tuple, output: torch.Tensor) -> None:
        layer.weight.data = kept.pop()

    model.fc.register_forward_pre_hook(write)
    if restored:
        model.fc.register_forward_hook(restore)
    return model


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_networks_that_write_their_weights_are_refused(name: str, restored: bool) -> None:
    message = "writes the weights of fc itself"
    with pytest.raises(ValueError, match=message):
        predict(program(writing(name, restored=restored), PROFILES["pcm"], seed=0), ROWS)
    with pytest.raises(ValueError, match=message):
        program(writing(name, restored=restored), ADC_9, seed=0, calibration=IMAGES)
    chip = program(writing(name), PROFILES["pcm"], seed=0, digital_layers=["fc"])
    predict(chip, ROWS)


ALLOWED: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "scale and shift": lambda n, x: n.fc(features(n, x) * n.scale + n.w[0]),
    "token": lambda n, x: n.fc(
        torch.stack([features(n, x), n.scale.expand(len(x), -1)], 1).mean(1)
    ),
    "lookup": lambda n, x: n.fc(features(n, x) + n.table(x[:, 0, 0, 0].sign().long().abs())),
    "layer of a parameter": lambda n, x: n.fc(features(n, x)) + n.fc(n.scale),
    "attention": lambda n, x: n.fc(attention_within(features(n, x))),
    "learned bias of attention": lambda n, x: n.fc(attention_within(features(n, x), n.w[:8, :8])),
    "weights among themselves": lambda n, x: n.fc(features(n, x) * (n.w @ n.scale)),
    "norm": lambda n, x: n.fc(F.layer_norm(features(n, x), (128,), n.scale, n.scale)),
    "fixed filter": lambda n, x: n.fc(
        n.conv(F.conv2d(x, torch.ones(3, 1, 1, 1), groups=3)).flatten(1)
    ),
    "parameters given to a layer": lambda n, x: torch.func.functional_call(
        n.fc, dict(n.fc.named_parameters()), (features(n, x),)
    ),
    "learned queries": lambda n, x: (
        n.fc(attention_within(n.fc(n.scale).mean() + features(n, x)))
        + (n.fc(n.w[:4])[:, :2] @ features(n, x)[:, None, :2].transpose(1, 2)).mean(1)
    ),
    "single images": lambda n, x: n.fc(torch.stack([n.conv(one).flatten() for one in x])),
    "twice": lambda n, x: n.fc(features(n, x)) + n.fc(features(n, -x)),
}


def attention_within(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    tokens = x.view(len(x), 8, 16)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, bias).flatten(1)


@pytest.mark.parametrize("name", ALLOWED)
def test_honest_uses_of_parameters_are_taken(name: str) -> None:
    model = Parts(ALLOWED[name])
    expected = np.stack(predict(model, ROWS)["logits"].to_numpy())
    for profile in (PROFILES["ideal"], Profile(ADC(22))):
        chip = program(model, profile, seed=0, calibration=IMAGES, digital_layers=["table"])
        actual = np.stack(predict(chip, ROWS)["logits"].to_numpy())
        np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_layers_on_tiles_that_no_image_needs_are_told_of() -> None:
    model = Net()
    model.auxiliary = nn.Sequential(nn.Linear(3, 3)).eval()
    chip = program(model, PROFILES["pcm"], seed=0)
    with pytest.warns(
        UserWarning, match=r"auxiliary\.0 on tiles: not called on the first 5 images"
    ):
        predict(chip, ROWS)
    with pytest.raises(
        ValueError, match=r"not used on the 5 .* layer auxiliary\.0; .*=\['auxiliary\.0'\]"
    ):
        program(model, ADC_9, seed=0, calibration=IMAGES)
    program(model, ADC_9, seed=0, calibration=IMAGES, digital_layers=["auxiliary"])
    predict(program(model, PROFILES["pcm"], seed=0, digital_layers=["auxiliary"]), ROWS)


class Gain(Net):
    """Uses a layer's weights, or a copy of the bias, but not as a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.gain, self.kind = nn.Linear(1, 128), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).relu().flatten(1)
        one = self.gain.weight[:, 0] if self.kind == "weight" else self.gain.bias.clone()
        return self.fc(features * one)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_layers_whose_weights_are_read_but_that_are_not_called_are_refused(kind: str) -> None:
    model = Gain(kind).eval()
    message = r"layer gain would be on tiles but a forward pass does not call it, and computes with"
    with pytest.raises(ValueError, match=message):
        predict(program(model, PROFILES["pcm"], seed=0), ROWS)
    with pytest.raises(ValueError, match=message):
        program(model, ADC_9, seed=0, calibration=IMAGES)
    predict(program(model, PROFILES["pcm"], seed=0, digital_layers=["gain"]), ROWS)


class Routed(Net):
    """Each image chooses its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(128, 4) for _ in range(3)).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features, chosen = self.conv(x).relu().flatten(1), x[:, 0, 0, 0].long()
        logits = self.fc(features)
        for n, expert in enumerate(self.experts):
            if (rows := (chosen == n).nonzero()[:, 0]).numel():
                logits = logits.index_add(0, rows, expert(features[rows]))
        return logits


def test_layers_that_an_image_chooses_need_one_that_does() -> None:
    images = np.concatenate([IMAGES, IMAGES])
    images[:, 0, 0, 0] = [0, 1, 2, 1, 0, 0, 1, 2, 1, 0]
    program(Routed().eval(), ADC_9, seed=0, calibration=images)
    with pytest.raises(ValueError, match=r"not used on the 2 calibration .*: layer experts\.2;"):
        program(Routed().eval(), ADC_9, seed=0, calibration=images[:2])
    late = np.concatenate([np.repeat(images[:2], 40, axis=0), images[2:3]])
    program(Routed().eval(), ADC_9, seed=0, calibration=late)


def test_the_cure_for_a_call_of_forward_is_one() -> None:
    model = Parts(lambda n, x: n.fc.forward(features(n, x)))
    with pytest.raises(
        ValueError, match=r"self\.fc\.forward\(x\).*digital_layers=\['fc'\]"
    ) as told:
        predict(program(model, PROFILES["pcm"], seed=0, digital_layers=["table"]), ROWS)
    assert "fc.weight" in str(told.value)
    predict(program(model, PROFILES["pcm"], seed=0, digital_layers=["table", "fc"]), ROWS)


def test_a_copy_that_still_runs_the_original_is_refused() -> None:
    model = Net()
    model.forward = lambda x: model.fc(model.conv(x).relu().flatten(1))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"the forward of the model \(Net\) was replaced"):
        predict(program(model, PROFILES["pcm"], seed=0), ROWS)
    holder = [model]  # in which nobody looks for it
    model.forward = lambda x: holder[0].fc(holder[0].conv(x).relu().flatten(1))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"2 layers: conv, fc would be on tiles but"):
        predict(program(model, PROFILES["pcm"], seed=0), ROWS)


class Remembers(Net):
    """A hook of its own that nobody sees by its closure: through a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, torch.Tensor] = {}
        seen = self.seen
        self.conv.register_forward_hook(lambda layer, args, output: seen.update(conv=output))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.seen["conv"].mean()


def test_a_copy_with_other_logits_than_the_model_is_refused() -> None:
    model = Remembers()
    model(torch.full((1, 3, 6, 6), 50.0))  # which the copy's dictionary then holds
    with pytest.raises(ValueError, match="a copy of the model gives other logits"):
        program(model, ADC_9, seed=0, calibration=IMAGES)


def test_clipped_chips_are_not_taken_for_other_networks() -> None:
    profile = Profile(ADC(), clipping=Clipping("layer_gaussian", 1.0))
    program(Net(), profile, seed=0, calibration=IMAGES)


class ReadsParametrization(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.fc.parametrizations.weight.original0.mean()


def test_code_that_reads_a_parametrization_is_told_so() -> None:
    model = ReadsParametrization()
    nn.utils.parametrizations.weight_norm(model.fc)
    chip = program(model.eval(), PROFILES["pcm"], seed=0)
    with pytest.raises(ValueError, match=r"fails on tiles .* no attribute 'parametrizations'"):
        predict(chip, ROWS)


class AsksForATrainedParameter(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(next(p for p in self.parameters() if p.requires_grad).device))


def test_code_that_asks_for_what_a_copy_has_not_is_told_so() -> None:
    model = AsksForATrainedParameter().requires_grad_(True)
    chip = program(model, PROFILES["pcm"], seed=0)
    for call in (lambda: predict(chip, ROWS), lambda: chip(TENSOR, range(5))):
        with pytest.raises(ValueError, match=r"\(StopIteration\).* the input, x\.device"):
            call()


class Nested(Net):
    """Makes nested tensors itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.nested.nested_tensor(list(self.conv(x).relu().flatten(1)))
        return self.fc(rows).to_padded_tensor(0.0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_told_of_with_the_cure() -> None:
    chip = program(Nested(), Profile(ADC(range=20.0)), seed=0)
    with pytest.raises(ValueError, match=r"no nested tensors.*to_padded_tensor"):
        chip(TENSOR, range(5))


class OfOneSize(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) == 5, "batches of five"
        return super().forward(x)


def test_networks_of_one_batch_size_run() -> None:
    expected = OfOneSize()(TENSOR)
    found = program(OfOneSize(), PROFILES["ideal"], seed=0)(TENSOR, range(5))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    predict(OfOneSize(), ROWS, batch_size=5)


def tripled(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    return 3 * output if isinstance(layer, nn.Linear) else None


def limited(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    return output.clamp(-0.05, 0.05) if type(layer).__name__ == "Conv2d" else None


def weighed(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    return output / 2 if hasattr(layer, "weight") else None


def of_a_linear_layer(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    return 3 * output if hasattr(layer, "in_features") else None


def marked(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return 3 * output if hasattr(layer, "gain") else output


@pytest.mark.parametrize("hook", [tripled, limited, weighed, of_a_linear_layer, marked])
def test_code_that_asks_what_a_layer_is_is_refused(hook: Callable[..., Any]) -> None:
    model: Any = Net()
    model.fc.gain = 3
    for layer in (model.conv, model.fc):
        layer.register_forward_hook(hook)
    expected = model(TENSOR)
    plain = program(model, PROFILES["ideal"], seed=0)  # on which layers are PyTorch's
    torch.testing.assert_close(plain(TENSOR, range(5)), expected, rtol=1e-3, atol=1e-4)
    for make in (
        lambda: program(model, Profile(ADC(22)), seed=0, calibration=IMAGES),
        lambda: program(model, noisy("constant", 1e-6), seed=0),
    ):
        if hook in (marked, of_a_linear_layer, weighed):
            torch.testing.assert_close(make()(TENSOR, range(5)), expected, rtol=1e-3, atol=1e-4)
            continue
        with pytest.raises(ValueError, match=r"code or a hook asks for their kind"):
            predict(make(), ROWS)


def halved(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    return output / 2 if isinstance(layer, nn.Conv2d) else None


def shifted(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    return output + 1 if type(layer) is nn.Linear else None


class AsksInForward(Net):
    """Runs over its layers, as code that scales residual branches or freezes layers does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                found = found * 2
        return found


class AsksForNames(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kinds = [type(layer).__name__ for layer in self.children()]
        return super().forward(x) * kinds.count("Linear")


class AsksForItsParameters(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + sum(name == "fc.weight" for name, _ in self.named_parameters())


def hooked(hook: Callable[..., Any]) -> nn.Module:
    model: Any = Net()
    model.fc.gain = 3
    for layer in (model.conv, model.fc):
        layer.register_forward_hook(hook)
    return model


ASKING: dict[str, Callable[[], nn.Module]] = {
    "isinstance Conv2d": lambda: hooked(halved),
    "type is Linear": lambda: hooked(shifted),
    "name of the type": lambda: hooked(limited),
    "in forward": AsksInForward,
    "names in forward": AsksForNames,
    "parameters in forward": AsksForItsParameters,
    "number of features": lambda: hooked(of_a_linear_layer),
}
HONEST_ON_AIHWKIT: dict[str, Callable[[], nn.Module]] = {
    **HONEST,
    "isinstance Linear": lambda: hooked(tripled),
    "an attribute of its own": lambda: hooked(marked),
}


@pytest.mark.parametrize("name", ASKING)
def test_code_that_asks_what_a_layer_is_is_refused_on_aihwkit_s_tiles(name: str) -> None:
    model = ASKING[name]()
    expected = model(TENSOR)
    message = r"where its layers on tiles are AIHWKit's: its code or a hook asks for their kind"
    plain = program(model, PROFILES["ideal"], seed=0)
    torch.testing.assert_close(plain(TENSOR, range(5)), expected, rtol=1e-3, atol=1e-4)
    for chip in (program(model, PROFILES["pcm"], seed=0, engine="aihwkit"), plain.on("aihwkit")):
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                predict(chip, ROWS)
        with pytest.raises(ValueError, match=message):
            chip(TENSOR, range(5))
    with pytest.raises(ValueError, match=r"asks for their kind"):
        program(model, ADC_9, seed=0, calibration=IMAGES, engine="aihwkit")
    later = program(model, noisy("constant", 1e-4), seed=0, engine="aihwkit").on("fast")
    # The other engine's layers have these as PyTorch's do.
    if name in ("number of features", "parameters in forward"):
        predict(later, ROWS)
        return
    with pytest.raises(ValueError, match=r"asks for their kind"):
        predict(later, ROWS)


@pytest.mark.parametrize("name", HONEST_ON_AIHWKIT)
def test_honest_networks_are_taken_on_aihwkit_s_tiles(name: str) -> None:
    model = HONEST_ON_AIHWKIT[name]()
    chip = program(model, PROFILES["ideal"], seed=0, engine="aihwkit")
    found = np.stack(predict(chip, ROWS, batch_size=5)["logits"].to_numpy())
    expected = np.stack(predict(model, ROWS, batch_size=5)["logits"].to_numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


class FirstBatch(nn.Module):
    """Sets its shift by the first batch that it sees, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.shift, self.known = nn.Parameter(torch.zeros(6)), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if not self.known:
            self.shift.data, self.known = -x.mean(0).detach(), True
        return self.b((x + self.shift).relu())


class Counting(nn.Module):
    """Counts its calls in a buffer, which decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc(x)


def test_a_network_that_its_first_batch_sets_up_is_refused() -> None:
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="sets itself up on its first batch"):
        program(FirstBatch().eval(), PROFILES["ideal"], seed=0)(x, range(6))
    settled = FirstBatch().eval()
    with torch.no_grad():
        expected = settled(x)
    torch.testing.assert_close(program(settled, PROFILES["ideal"], seed=0)(x, range(6)), expected)
    counting = Counting().eval()
    chip = program(counting, PROFILES["ideal"], seed=0)
    torch.testing.assert_close(chip(x, range(6)), counting(x).detach())


class Prototypes(nn.Module):
    """Compares features with parameters, in a way of its own."""

    def __init__(self, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.prototypes = nn.Linear(6, 8), nn.Parameter(torch.randn(40, 8))
        self.compare = compare

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compare(self.fc(x), self.prototypes)


@pytest.mark.parametrize(
    "compare",
    [torch.cdist, lambda h, w: (h[:, None].expand(-1, 40, -1) * w).sum(-1)],
    ids=["distances of many", "an expanded view"],
)
def test_products_of_other_kinds_with_parameters_are_refused(compare: Any) -> None:
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    chip = program(Prototypes(compare).eval(), PROFILES["wnoise"], seed=0)
    with pytest.raises(ValueError, match="multiplies with prototypes outside of a layer"):
        chip(x, range(6))


class Trimmed(nn.Module):
    """Token ids, cut to the longest sample of their batch."""

    def __init__(self, masked: bool, pad: int = 0):
        super().__init__()
        self.masked, self.pad = masked, pad
        self.embed, self.fc, self.out = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        there = ids != self.pad
        longest = max(int(there.sum(1).max()), 1)
        ids, there = ids[:, :longest], there[:, :longest, None]
        x = self.fc(self.embed(ids)).tanh()
        if self.masked:
            return self.out((x * there).sum(1) / there.sum(1).clamp(min=1))
        return self.out(x.mean(1))


@pytest.mark.parametrize("pad", [0, 1, 29])
def test_batches_cut_to_their_longest_sample(pad: int) -> None:
    ids = torch.randint(2, 29, (12, 10), generator=torch.Generator().manual_seed(0))
    for row in range(3, 12):  # the first are equally long
        ids[row, 14 - row :] = pad
    source = [{"image": row.numpy(), "label": 0, "index": n} for n, row in enumerate(ids)]
    model = Trimmed(masked=False, pad=pad)
    with pytest.raises(ValueError, match="the module mixes the samples of a batch"):
        predict(model, source)
    chip = program(model, PROFILES["ideal"], seed=0, digital_layers=["embed"])
    with pytest.raises(ValueError, match="the network mixes the samples of a batch"):
        chip(ids, range(12))
    honest = Trimmed(masked=True, pad=pad)
    predict(honest, source)
    chip = program(honest, PROFILES["ideal"], seed=0, digital_layers=["embed"])
    torch.testing.assert_close(chip(ids, range(12))[5], chip(ids[5:6], [5])[0])


class Cut(nn.Module):
    """Frames, cut to the batch's longest: what follows a sample's last change is padding."""

    def __init__(self, masked: bool):
        super().__init__()
        self.masked, self.fc = masked, nn.Linear(4, 3)
        self.fc.weight.data = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0] if x.ndim == 4 else x
        moves = (x != x[:, -1:]).any(2).flip(1).cumsum(1).flip(1) > 0
        longest = max(int(moves.sum(1).max()), 1)
        x, moves = self.fc(x[:, :longest]).tanh(), moves[:, :longest, None]
        return (x * moves).sum(1) / moves.sum(1).clamp(min=1) if self.masked else x.mean(1)


def test_images_with_borders_are_not_padded() -> None:
    x = TENSOR.clone().clamp(0, 1).mul(255).round() / 255  # as of eight bits: many are alike
    x[1, :, :2], x[3, :, :, 4:] = 0, 0.5
    chip = program(Net(), PROFILES["ideal"], seed=0)
    torch.testing.assert_close(chip(x, range(5))[3], chip(x[3:4], [3])[0])
    with pytest.raises(ValueError, match="the network mixes the samples of a batch"):
        program(MIXING["batch mean"](), PROFILES["ideal"], seed=0)(x, range(5))


PADDING: dict[str, Callable[[torch.Tensor], Any]] = {
    "0": lambda last: 0.0,
    "log 1e-5": lambda last: -11.5129,
    "-80 dB": lambda last: -80.0,
    "0, normalised after": lambda last: torch.tensor([0.1, -1.2, 0.7, -0.4]),
    "the last frame": lambda last: last,
}


@pytest.mark.parametrize("alike", [False, True], ids=["other lengths", "one length"])
@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("pad", PADDING)
def test_signals_cut_to_their_longest_sample(pad: str, axes: int, alike: bool) -> None:
    signals = torch.rand(9, 12, 4, generator=torch.Generator().manual_seed(0)) - 3
    for n, signal in enumerate(signals):
        length = 5 if alike or n < 3 else 3 + n
        signal[length:] = PADDING[pad](signal[length - 1])
    x = signals if axes == 3 else signals[:, None]
    source = [{"image": a.numpy(), "label": 0, "index": n} for n, a in enumerate(signals)]
    mixing = program(Cut(masked=False), PROFILES["ideal"], seed=0)
    with pytest.raises(ValueError, match="the network mixes the samples of a batch"):
        mixing(x, range(9))
    honest = program(Cut(masked=True), PROFILES["ideal"], seed=0)
    torch.testing.assert_close(honest(x, range(9))[5], honest(x[5:6], [5])[0])
    if axes == 3:
        predict(Cut(masked=True), source)
        with pytest.raises(ValueError, match="the module mixes the samples of a batch"):
            predict(Cut(masked=False), source)


class OneByOne(nn.Module):
    """A network of single samples, mapped over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(64, 4))
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(self.net)(x)


@pytest.mark.parametrize(
    ("profile", "engine"),
    [
        (ADC_9, "fast"),
        (noisy("constant"), "fast"),
        (PROFILES["ideal"], "aihwkit"),
        (ADC_9, "aihwkit"),
    ],
    ids=["adc", "noise of each operation", "aihwkit", "adc of aihwkit"],
)
def test_a_mapped_call_is_told_to_be_on_the_batch(profile: Any, engine: Any) -> None:
    with pytest.raises(ValueError, match=r"on the batch, without torch\.vmap"):
        program(OneByOne(), profile, seed=0, calibration=TENSOR, engine=engine)(TENSOR, range(5))


class Averaged(Net):
    """Computes with other weights than its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = {name: 2 * tensor for name, tensor in self.conv.state_dict().items()}
        x = torch.func.functional_call(self.conv, weights, (x,))
        return self.fc(x.relu().flatten(1))


def test_weights_of_a_functional_call_are_told_to_be_loaded() -> None:
    chip = program(Averaged(), PROFILES["ideal"], seed=0)
    with pytest.raises(ValueError, match=r"writes the weights of conv .*net\.load_state_dict\("):
        chip(TENSOR, range(5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("within", [False, True], ids=["itself", "within a network"])
@pytest.mark.parametrize("freeze", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_frozen_torchscript_is_told_as_what_it_is(freeze: Any, within: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)).eval()
    frozen = freeze(torch.jit.script(module))
    if within:
        frozen = nn.Sequential(frozen, nn.Linear(4, 4)).eval()
    for call in (
        lambda: predict(frozen, ROWS),
        lambda: program(frozen, PROFILES["ideal"], seed=0),
        lambda: to_jax(frozen, IMAGES),
    ):
        with pytest.raises(ValueError, match=r"is frozen by TorchScript .* as it was before"):
            call()

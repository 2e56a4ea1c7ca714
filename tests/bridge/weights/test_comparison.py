"""Networks that have the same weights and are not the same network."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
from bridge import from_torch, same_logits, to_torch
from bridge.weights import resnet
from bridge.weights.state import carry
from jaxcurv.models.resnet import BasicBlock, ResNet
from tests.bridge.weights.test_state import shallow_resnet, with_random_values

IMAGES = np.random.default_rng(1).normal(size=(6, 8, 8, 3)).astype(np.float32)


class Flax(nnx.Module):
    """A convolution, a normalisation and a linear layer, any of them given otherwise."""

    def __init__(
        self,
        conv: Callable | None = None,
        norm: Callable | None = None,
        *,
        fc: Callable | None = None,
        between: Callable = lambda x: x.mean((1, 2)),
        act: Callable = jax.nn.relu,
    ):
        rngs = nnx.Rngs(0)
        conv = conv or (lambda rngs: nnx.Conv(3, 4, (3, 3), rngs=rngs))
        norm = norm or (lambda rngs: nnx.BatchNorm(4, rngs=rngs))
        fc = fc or (lambda rngs: nnx.Linear(4, 5, rngs=rngs))
        self.conv, self.norm, self.fc = conv(rngs), norm(rngs), fc(rngs)
        self.between, self.act = between, act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(self.between(self.act(self.norm(self.conv(x)))))


class Torch(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(
        self,
        conv: torch.nn.Module | None = None,
        norm: torch.nn.Module | None = None,
        *,
        fc: torch.nn.Module | None = None,
        between: Callable = lambda x: x.mean((2, 3)),
        act: Callable = torch.relu,
    ):
        super().__init__()
        self.conv = conv or torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = norm or torch.nn.BatchNorm2d(4)
        self.fc = fc or torch.nn.Linear(4, 5)
        self.between, self.act = between, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.between(self.act(self.norm(self.conv(x)))))


def flax(**settings: Callable) -> nnx.Module:
    return with_random_values(lambda: Flax(**settings))


def conv(**settings: object) -> Callable:
    return lambda rngs: nnx.Conv(3, 4, (3, 3), **settings, rngs=rngs)  # type: ignore[arg-type]


def flat(size: int) -> Callable:
    return lambda rngs: nnx.Linear(size, 5, rngs=rngs)


PARTED = {
    "stride and SAME": (
        {"conv": conv(strides=2)},
        {"conv": torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)},
        "in conv",
    ),
    "stride": (
        {"conv": conv(strides=2, padding=1)},
        {},
        r"in conv .*shape",
    ),
    "dilation": (
        {"conv": conv(kernel_dilation=2)},
        {},
        "in conv",
    ),
    "circular": ({"conv": conv(padding="CIRCULAR")}, {}, "in conv"),
    "epsilon": (
        {"norm": lambda rngs: nnx.BatchNorm(4, epsilon=1e-3, rngs=rngs)},
        {},
        "in norm",
    ),
    "flatten": (
        {"fc": flat(256), "between": lambda x: x.reshape(len(x), -1)},
        {"fc": torch.nn.Linear(256, 5), "between": lambda x: x.flatten(1)},
        r"between norm and fc.*another order",
    ),
    "activation": (
        {"act": jax.nn.gelu},
        {"act": torch.nn.functional.gelu},
        "between norm and fc",
    ),
    "pooling": ({"between": lambda x: x.max((1, 2))}, {}, "between norm and fc"),
}


@pytest.mark.parametrize("case", PARTED)
def test_networks_that_part_are_told_with_the_layer(case: str) -> None:
    settings, others, where = PARTED[case]
    model, module = flax(**settings), Torch(**others).eval()
    with pytest.raises(ValueError, match=rf"not the same network.*{where}") as error:
        to_torch(model, into=module, images=IMAGES)
    before = {name: tensor.clone() for name, tensor in Torch(**others).state_dict().items()}
    module.load_state_dict(before)
    with pytest.raises(ValueError, match="not the same network"):
        to_torch(model, into=module, images=IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert "tolerance" in str(error.value)


def test_networks_that_agree() -> None:
    cases = [
        ({}, {}),
        ({"conv": conv(feature_group_count=1, padding=1)}, {}),
        (
            {"norm": lambda rngs: nnx.BatchNorm(4, epsilon=1e-3, rngs=rngs)},
            {"norm": torch.nn.BatchNorm2d(4, eps=1e-3)},
        ),
        (
            {"conv": conv(strides=2)},
            {
                "conv": torch.nn.Sequential(
                    torch.nn.ZeroPad2d((0, 1, 0, 1)), torch.nn.Conv2d(3, 4, 3, stride=2)
                )
            },
        ),
        (
            {"fc": flat(256), "between": lambda x: x.reshape(len(x), -1)},
            {
                "fc": torch.nn.Linear(256, 5),
                "between": lambda x: x.permute(0, 2, 3, 1).flatten(1),
            },
        ),
        ({"conv": conv(kernel_dilation=2)}, {"conv": torch.nn.Conv2d(3, 4, 3, 1, 2, 2)}),
    ]
    for settings, others in cases:
        model, module = flax(**settings), Torch(**others)
        if isinstance(module.conv, torch.nn.Sequential):
            module.conv[1].load_state_dict(
                {
                    name.removeprefix("conv."): tensor
                    for name, tensor in _carried(model).items()
                    if name.startswith("conv.")
                }
            )
            module.norm.load_state_dict(_part(model, "norm"))
            module.fc.load_state_dict(_part(model, "fc"))
        else:
            weights = to_torch(model, into=module, images=IMAGES)
            assert weights.keys() == module.state_dict().keys()
            assert all(torch.equal(weights[name], own) for name, own in _values(module))
        assert module.training
        found = same_logits(model, module, IMAGES)
        assert found
        assert found.layer is None
        assert found.difference < found.tolerance * found.largest
        assert "same logits" in str(found)


def _carried(model: nnx.Module) -> dict[str, torch.Tensor]:
    model = nnx.clone(model)
    model.conv.strides = 1
    return to_torch(model)


def _part(model: nnx.Module, name: str) -> dict[str, torch.Tensor]:
    found = _carried(model).items()
    return {key.removeprefix(f"{name}."): one for key, one in found if key.startswith(f"{name}.")}


def _values(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(module.state_dict().items())


def test_groups_travel() -> None:
    model = flax(
        conv=lambda rngs: nnx.Conv(4, 4, (3, 3), feature_group_count=2, padding=1, rngs=rngs)
    )
    images = np.random.default_rng(2).normal(size=(4, 7, 8, 4)).astype(np.float32)
    to_torch(model, into=Torch(torch.nn.Conv2d(4, 4, 3, padding=1, groups=2)), images=images)


def test_the_project_s_resnets_agree_and_tensors_are_images_too() -> None:
    model = shallow_resnet()
    other = bridge.weights.twin(model)
    assert same_logits(model, other, IMAGES)
    assert same_logits(model, other, torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    assert same_logits(model, other, jnp.asarray(IMAGES))
    model.layer2[0].conv1.padding = "SAME"
    found = same_logits(model, other, IMAGES)
    assert not found
    assert (found.layer, found.place) == ("layer2.0.conv1", "in")
    assert found.layers.iloc[-1]["layer"] == "fc"
    agreeing = found.layers.set_index("layer")["output_difference"] < found.tolerance
    assert agreeing["layer1.0"]
    assert not agreeing["layer2.0.conv1"]


def test_a_fresh_resnet_fits_into_its_twin_and_modes_stay() -> None:
    depths = (1, 1, 0, 0)
    settings: Any = {"num_classes": 10, "stem": "cifar", "width": 4, "in_channels": 3}
    model = ResNet(BasicBlock, depths, **settings, dtype=jnp.float32, rngs=nnx.Rngs(0))
    into = resnet.ResNet(resnet.BasicBlock, depths, **settings)
    to_torch(model, into=into, images=IMAGES)
    assert not model.bn1.use_running_average  # the mode stays
    assert into.training


def test_layers_are_seen_within_jit() -> None:
    class Jitted(Flax):
        @nnx.jit
        def __call__(self, x: jax.Array) -> jax.Array:
            return super().__call__(x)

    model = with_random_values(lambda: Jitted(norm=PARTED["epsilon"][0]["norm"]))
    with pytest.raises(ValueError, match="in norm"):
        to_torch(model, into=Torch(), images=IMAGES)


def test_other_names_are_compared_in_the_order_of_calls() -> None:
    class Renamed(Torch):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = self.conv, self.norm, self.fc
            del self.conv, self.norm, self.fc

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.second(self.first(x))).mean((2, 3)))

    model, module = flax(norm=PARTED["epsilon"][0]["norm"]), Renamed()
    for name, own in (("conv", "first"), ("norm", "second"), ("fc", "last")):
        getattr(module, own).load_state_dict(_part_of(model, name))
    assert same_logits(model, module, IMAGES).layer == "norm (second)"


def _part_of(model: nnx.Module, name: str) -> dict[str, torch.Tensor]:
    other = nnx.clone(model)
    other.norm.epsilon = 1e-5
    return _part(other, name)


def test_what_comes_after_the_last_layer() -> None:
    class Softmax(Torch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).softmax(1)

    with pytest.raises(ValueError, match="after fc"):
        to_torch(flax(), into=Softmax(), images=IMAGES)


def test_in_place_activations_do_not_mislead() -> None:
    class InPlace(Torch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu_(self.norm(self.conv(x))).amax((2, 3)))

    with pytest.raises(ValueError, match="between norm and fc"):
        to_torch(flax(), into=InPlace(), images=IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:1], "at least two"),
        (np.zeros_like(IMAGES), "do not depend on the images"),
        (np.broadcast_to(IMAGES[:1], IMAGES.shape), "do not depend on the images"),
        (np.full_like(IMAGES, np.nan), "not finite"),
        (np.ones_like(IMAGES) * IMAGES[:, :1, :1, :1], "one value throughout"),
        (IMAGES[..., :2], r"fails on images \(6, 8, 8, 2\)"),
        (IMAGES[0], "at least two|fails on"),
        ("cat.png", "images must be"),
        (None, "give images"),
    ],
)
def test_images_that_show_nothing_are_refused(images: object, message: str) -> None:
    module = Torch()
    before = {name: tensor.clone() for name, tensor in _values(module)}
    with pytest.raises((ValueError, TypeError), match=message):
        to_torch(flax(), into=module, images=images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in _values(module))


FAILURES = [KeyError("mask"), AttributeError("shape"), AssertionError("32 pixels"), TypeError("x")]
FAILURES += [IndexError("x"), NotImplementedError("x"), ZeroDivisionError("x"), RuntimeError("x")]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_network_that_fails_is_told_of_on_either_side(error: Exception) -> None:
    def fail(_: Any) -> Any:
        raise error

    class FailingTorch(Torch):
        forward = staticmethod(fail)

    class FailingFlax(Flax):
        __call__ = staticmethod(fail)

    message = rf"fails on images .*{type(error).__name__}.*give images of the size"
    module = Torch().train()
    with pytest.raises(ValueError, match=f"flax_model {message}"):
        same_logits(FailingFlax(), module, IMAGES)
    failing = FailingTorch().train()
    with pytest.raises(ValueError, match=f"torch_model {message}"):
        same_logits(flax(), failing, IMAGES)
    assert failing.training
    assert failing.fc.training


def test_weights_that_do_not_fit_the_module_are_listed() -> None:
    with pytest.raises(ValueError, match=r"do not fit.*fc\.weight has shape \(9, 4\), not \(5, 4"):
        to_torch(flax(), into=Torch(fc=torch.nn.Linear(4, 9)), images=IMAGES)
    with pytest.raises(ValueError, match=r"do not fit.*missing norm\.0\.weight.*unexpected norm\."):
        to_torch(
            flax(), into=Torch(norm=torch.nn.Sequential(torch.nn.BatchNorm2d(4))), images=IMAGES
        )
    with torch.device("meta"):
        module = Torch()
    with pytest.raises(ValueError, match=r"without values.*to_empty"):
        to_torch(flax(), into=module, images=IMAGES)
    with pytest.raises(ValueError, match="call it once"):
        to_torch(flax(), into=Torch(fc=torch.nn.LazyLinear(5)), images=IMAGES)
    with pytest.raises(ValueError, match="give into="):
        to_torch(flax(), images=IMAGES)
    with pytest.raises(TypeError, match="into must be a torch module"):
        to_torch(flax(), into=Torch, images=IMAGES)


def test_a_module_s_own_buffers_keep_their_values() -> None:
    class Normalised(Torch):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - self.mean)

    module = Normalised()
    to_torch(flax(), into=module, images=IMAGES)
    module.mean += 1
    with pytest.raises(ValueError, match="between the images and conv"):
        to_torch(flax(), into=module, images=IMAGES)


@pytest.mark.parametrize("of_a_module", [True, False])
def test_what_torch_writes_later_stays_torch_s(of_a_module: bool) -> None:
    module = Torch(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16))
    module.fc = torch.nn.Linear(16, 5)
    wide: Any = {
        "conv": lambda rngs: nnx.Conv(3, 16, (3, 3), rngs=rngs),
        "norm": lambda rngs: nnx.BatchNorm(16, rngs=rngs),
        "fc": lambda rngs: nnx.Linear(16, 5, rngs=rngs),
    }
    carried = from_torch(module if of_a_module else module.state_dict(), flax(**wide))
    state = nnx.to_flat_state(nnx.state(carried, (nnx.Param, nnx.BatchStat)))
    before = {path: np.array(one[...]) for path, one in state}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor += 1
    for path, one in state:
        np.testing.assert_array_equal(one[...], before[path], err_msg=str(path))


class Remembering(Torch):
    """Counts its calls in a buffer, in a number and in a list, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.number, self.sizes = 0, [7]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.number += 1
        self.sizes.append(len(x))
        self.seen = x
        return super().forward(x)


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("call", ["to_torch", "from_torch", "same_logits"])
def test_a_comparison_leaves_the_module_s_own_state(call: str, accepted: bool) -> None:
    module = Remembering()
    model = flax() if accepted else flax(act=jax.nn.tanh)
    with nullcontext() if accepted else pytest.raises(ValueError, match="not the same network"):
        if call == "to_torch":
            to_torch(model, into=module, images=IMAGES)
        elif call == "from_torch":
            from_torch(module, model, images=IMAGES)
        elif not (found := same_logits(carry(module.state_dict(), model), module, IMAGES)):
            raise ValueError(str(found))
    assert (module.calls.item(), module.number, module.sizes) == (0, 0, [7])
    assert not hasattr(module, "seen")
    assert module.training


def test_outputs_that_are_no_logits_are_refused() -> None:
    class Pair(Torch):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return super().forward(x), None

    with pytest.raises(TypeError, match=r"torch_model gives a tuple.*logits"):
        same_logits(flax(), Pair(), IMAGES)
    found = same_logits(flax(), Torch(fc=torch.nn.Linear(4, 9)), IMAGES)
    assert not found
    assert "(6, 5) and (6, 9)" in str(found)
    with pytest.raises(TypeError, match="flax_model must be a Flax NNX module"):
        same_logits(Torch(), Torch(), IMAGES)
    with pytest.raises(TypeError, match="torch_model must be a torch module"):
        same_logits(flax(), flax(), IMAGES)
    with pytest.raises(ValueError, match="tolerance"):
        same_logits(flax(), Torch(), IMAGES, tolerance=0)


class FlaxClasses(Flax):
    """What it gives is made of the logits by `of`."""

    of: Callable

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.of(super().__call__(x))


class TorchClasses(Torch):
    of: Callable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(super().forward(x))


@pytest.mark.parametrize(
    ("in_flax", "in_torch", "message"),
    [
        (lambda x: x.argmax(-1), lambda x: x.argmax(-1), "flax_model gives int32, classes"),
        (lambda x: jax.lax.top_k(x, 2)[1], lambda x: x.topk(2)[1], "flax_model gives int32"),
        (lambda x: x > 0, lambda x: x > 0, "flax_model gives bool"),
        (lambda x: x, lambda x: x.topk(2)[1], "torch_model gives int64, classes and not logits"),
        (lambda x: x, lambda x: x > 0, "torch_model gives bool"),
    ],
)
def test_classes_are_no_logits(in_flax: Callable, in_torch: Callable, message: str) -> None:
    model, module = FlaxClasses(), TorchClasses()
    model.of, module.of = in_flax, in_torch
    before = _values(module)
    with pytest.raises(ValueError, match=message):
        to_torch(model, into=module, images=IMAGES)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, _values(module), strict=True))
    module.load_state_dict(_carried(flax()))
    with pytest.raises(ValueError, match=rf"{message}.*argmax"):
        same_logits(model, module.eval(), IMAGES)
    with pytest.raises(ValueError, match=message):
        from_torch(module, model, images=IMAGES)


def test_compiled_and_wrapped_modules_are_seen_through() -> None:
    module = Torch()
    to_torch(flax(), into=torch.nn.DataParallel(module), images=IMAGES)
    model = flax(norm=PARTED["epsilon"][0]["norm"])

    class Compiled(torch.nn.Module):
        """As what `torch.compile` returns, which takes seconds to import."""

        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._orig_mod(x)

    to_torch(flax(), into=Compiled(), images=IMAGES)
    with pytest.raises(ValueError, match="in norm"):
        to_torch(model, into=Compiled(), images=IMAGES)


def test_from_a_module_and_images() -> None:
    module, model = Torch(), flax()
    carried = from_torch(module, model, images=IMAGES)
    assert same_logits(carried, module, IMAGES)
    with pytest.raises(ValueError, match=r"not the same network.*in conv"):
        from_torch(
            Torch(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)),
            flax(conv=conv(strides=2)),
            images=IMAGES,
        )
    for other, message in (
        (Torch(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)), r"conv \(Conv: strides 1.*\(2, 2"),
        (Torch(torch.nn.Conv2d(3, 4, 3, dilation=2)), r"conv \(Conv: kernel_dilation 1.*\(2, 2"),
        (Torch(norm=torch.nn.BatchNorm2d(4, eps=1e-3)), r"norm \(BatchNorm: epsilon 1e-05.*0\.001"),
    ):
        with pytest.raises(ValueError, match=rf"not the same network: {message}"):
            from_torch(other, model)
    twin = torch.nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    alike = Torch(twin, torch.nn.BatchNorm2d(4, eps=1e-3))
    from_torch(alike, flax(conv=conv(kernel_dilation=2), norm=PARTED["epsilon"][0]["norm"]))
    with pytest.raises(ValueError, match="give the torch module"):
        from_torch(module.state_dict(), model, images=IMAGES)


def test_sequences_are_pytorch_s() -> None:
    def layers(rngs: nnx.Rngs, *act: Callable) -> nnx.Sequential:
        return nnx.Sequential(nnx.Linear(8, 6, rngs=rngs), *act, nnx.Linear(6, 3, rngs=rngs))

    class Holder(nnx.Module):
        def __init__(self) -> None:
            self.layers, self.head = layers(nnx.Rngs(0), nnx.relu), layers(nnx.Rngs(1))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layers(x) + self.head(x)

    class TorchHolder(torch.nn.Module):
        def __init__(self, act: torch.nn.Module) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(8, 6), act, torch.nn.Linear(6, 3))
            self.head = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x) + self.head(x)

    vectors, model = IMAGES[:, :, 0, 0], with_random_values(Holder)
    into = TorchHolder(torch.nn.ReLU())
    assert to_torch(model, into=into, images=vectors).keys() == into.state_dict().keys()
    assert same_logits(from_torch(into, with_random_values(Holder, 3)), into, vectors)
    with pytest.raises(ValueError, match=r"between layers\.0 and layers\.2"):
        to_torch(model, into=TorchHolder(torch.nn.Tanh()), images=vectors)
    assert "layers.layers.0.weight" in to_torch(model)


def test_torchscript_and_half_precision() -> None:
    model = flax(act=jax.nn.gelu)

    class Scripted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
            self.fc = torch.nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(Scripted())
    to_torch(flax(), into=scripted, images=IMAGES)
    with pytest.raises(ValueError, match="no layer could be compared"):
        to_torch(model, into=scripted, images=IMAGES)
    half = with_random_values(lambda: Flax(conv=conv(dtype=jnp.bfloat16)))
    with pytest.raises(ValueError, match=r"0\.05.*in conv"):
        to_torch(half, into=Torch(), images=IMAGES)
    to_torch(half, into=Torch(), images=IMAGES, tolerance=0.05)


# Classes that are masked


def masked_by(value: float, *, rows: bool = False, add: bool = False) -> tuple[Callable, Callable]:
    """Pads nothing, hides the second class, or of every other image the first one too."""

    def where(count: int) -> np.ndarray:
        hidden = np.zeros((count, 5), bool)
        hidden[:, 1] = True
        if rows:
            hidden[::2, 0] = True
        return hidden

    def ours(x: jax.Array) -> jax.Array:
        return x + value * where(len(x)) if add else jnp.where(where(len(x)), value, x)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.from_numpy(where(len(x)))
        return x + value * hidden if add else x.masked_fill(hidden, value)

    return ours, theirs


class Masked(Flax):
    def __init__(self, mask: Callable):
        super().__init__()
        self.mask = mask

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mask(super().__call__(x))


class MaskedTorch(Torch):
    def __init__(self, mask: Callable):
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mask(super().forward(x))


LOWEST = float(np.finfo(np.float32).min)
MASKS = {
    "infinite": masked_by(-np.inf),
    "of some images": masked_by(-np.inf, rows=True),
    "finite": masked_by(-1e9),
    "finite, of some images": masked_by(-1e4, rows=True),
    "added": masked_by(-1e9, add=True),
    "lowest": masked_by(LOWEST),
}


@pytest.mark.parametrize("case", MASKS)
def test_masked_classes_are_no_largest_logit(case: str) -> None:
    ours, theirs = MASKS[case]
    model = with_random_values(lambda: Masked(ours))
    module = MaskedTorch(theirs).eval()
    to_torch(model, into=module, images=IMAGES)
    found = same_logits(model, module, IMAGES)
    assert found
    assert 0.1 < found.largest < 100
    with torch.no_grad():
        module.fc.bias[3] += 1e-3 * found.largest
    found = same_logits(model, module, IMAGES)
    assert not found
    assert found.difference < 1
    assert "after fc" in str(found) or "in fc" in str(found)


@pytest.mark.parametrize("value", [-np.inf, -1e9])
def test_masks_at_other_places_are_another_network(value: float) -> None:
    ours, theirs = masked_by(value)[0], masked_by(value, rows=True)[1]
    model, module = with_random_values(lambda: Masked(ours)), MaskedTorch(theirs).eval()
    module.load_state_dict(to_torch(model))
    found = same_logits(model, module, IMAGES)
    assert not found
    assert ("infinite at other places" in str(found)) == np.isinf(value)


def test_logits_without_meaning_are_refused_still() -> None:
    for value in (np.nan, np.inf):
        ours, theirs = masked_by(value)
        model, module = with_random_values(lambda mask=ours: Masked(mask)), MaskedTorch(theirs)
        with pytest.raises(ValueError, match="logits of flax_model are not finite"):
            same_logits(model, module, IMAGES)
    model = with_random_values(lambda: Masked(lambda x: jnp.full_like(x, -jnp.inf)))
    with pytest.raises(ValueError, match="logits of flax_model are not finite"):
        same_logits(model, Torch(), IMAGES)
    model = with_random_values(lambda: Masked(lambda x: masked_by(-np.inf)[0](0 * x + 1)))
    module = MaskedTorch(lambda x: masked_by(-np.inf)[1](0 * x + 1))
    with pytest.raises(ValueError, match="do not depend on the images"):
        same_logits(model, module, IMAGES)


def test_large_logits_that_are_no_masks_set_the_scale() -> None:
    large = jnp.array([1e6, -1e6, 1, 1, 1])
    model = with_random_values(lambda: Masked(lambda x: x * large))
    module = MaskedTorch(lambda x: x * torch.from_numpy(np.array(large))).eval()
    to_torch(model, into=module, images=IMAGES)
    assert same_logits(model, module, IMAGES).largest > 1e4


def test_a_network_that_works_in_place_is_compared_on_the_images_given() -> None:
    class InPlace(Torch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 0.5
            return super().forward(x)

    class Shifted(Flax):
        def __call__(self, x: jax.Array) -> jax.Array:
            return super().__call__(x - 0.5)

    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    before = images.clone()
    module = InPlace().eval()
    to_torch(with_random_values(Shifted), into=module, images=images)
    assert torch.equal(images, before)
    other = with_random_values(lambda: Shifted(act=jax.nn.gelu))
    with pytest.raises(ValueError, match="between norm and fc"):
        to_torch(other, into=module, images=images)

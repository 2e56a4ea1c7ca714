"""What the type of a layer says: settings that leave no trace in the weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen, nnx

from bridge import from_torch, to_torch

R = nnx.Rngs(0)


def conv(*size: int, **settings: object) -> nnx.Conv:
    return nnx.Conv(2, 4, size or (3, 3), **settings, rngs=R)  # type: ignore[arg-type]


def of_linen() -> nnx.Module:
    """A convolution as `conv()`, of Linen."""
    module = linen.Conv(4, (3, 3), strides=2)
    wrapped: nnx.Module = nnx.bridge.lazy_init(
        nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)), jnp.ones((1, 4, 4, 2))
    )
    return wrapped


def stacked(make: Callable) -> nnx.Module:
    """Three layers as one, with their weights along a first axis."""
    layers: nnx.Module = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(
        jax.random.split(jax.random.key(0), 3)
    )
    return layers


class Standardised(nnx.Conv):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * super().__call__(x)


class Named(nnx.Linear):
    """Computes as its kind does."""

    def __init__(self) -> None:
        super().__init__(3, 4, rngs=R)


def rounded(one: jax.Array, other: jax.Array, *more: Any, **settings: Any) -> jax.Array:
    return jax.lax.dot_general(one, jnp.round(other * 4) / 4, *more, **settings)


def convolved(one: jax.Array, other: jax.Array, *more: Any, **settings: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(one, jnp.round(other * 4) / 4, *more, **settings)


GIVEN: dict[str, tuple[Callable[[], nnx.Module], str]] = {
    "product": (
        lambda: nnx.Linear(3, 4, dot_general=rounded, rngs=R),
        r"layer \(Linear: with a dot_general of its own",
    ),
    "general product": (
        lambda: nnx.LinearGeneral(3, 4, dot_general=rounded, rngs=R),
        "LinearGeneral: with a dot_general of its own",
    ),
    "convolution's product": (
        lambda: conv(conv_general_dilated=convolved),
        r"layer \(Conv: with a conv_general_dilated of its own",
    ),
    "derived": (
        lambda: changed_product(Named()),
        r"layer \(Named: with a dot_general of its own",
    ),
    "types": (
        lambda: nnx.BatchNorm(3, promote_dtype=lambda given, **_: given, rngs=R),
        "BatchNorm: with a promote_dtype of its own",
    ),
}


def changed_product(layer: nnx.Linear) -> nnx.Linear:
    layer.dot_general = rounded
    return layer


UNTOLD = {
    **GIVEN,
    "stride and SAME": (lambda: conv(strides=2), r"layer \(Conv: padding 'SAME' with strides"),
    "stride and SAME, 2x2": (lambda: conv(2, 2, strides=(1, 2)), "padding 'SAME' with strides"),
    "SAME_LOWER": (lambda: conv(2, 2, padding="SAME_LOWER"), "padding 'SAME_LOWER'"),
    "circular": (lambda: conv(padding="CIRCULAR"), "padding 'CIRCULAR'"),
    "reflect": (lambda: conv(padding="REFLECT"), "padding 'REFLECT'"),
    "one side": (lambda: conv(padding=((0, 1), (0, 1))), r"padding \(\(0, 1\), \(0, 1\)\)"),
    "dilation": (lambda: conv(kernel_dilation=2), "kernel_dilation 2"),
    "dilation of one axis": (lambda: conv(kernel_dilation=(1, 2)), r"kernel_dilation \(1, 2\)"),
    "dilated input": (lambda: conv(input_dilation=2), "input_dilation 2"),
    "epsilon": (lambda: nnx.BatchNorm(3, epsilon=1e-3, rngs=R), r"layer \(BatchNorm: epsilon 0.00"),
    "own code": (
        lambda: Standardised(2, 4, (3, 3), rngs=R),
        r"layer \(Standardised: with a __call__ of its own",
    ),
    "axis": (lambda: nnx.BatchNorm(3, axis=1, rngs=R), "BatchNorm: axis 1"),
    "Linen": (of_linen, r"layer \(ToNNX: a Linen module"),
    "LayerNorm": (
        lambda: nnx.LayerNorm(3, use_bias=False, use_scale=False, rngs=R),
        "LayerNorm: epsilon 1e-06",
    ),
}
NEVER = {
    "transposed": (lambda: nnx.ConvTranspose(2, 4, (3, 3), rngs=R), r"layer \(ConvTranspose"),
    "einsum": (lambda: nnx.Einsum("ab,cb->ac", (4, 3), rngs=R), r"layer \(Einsum"),
    "first axis": (lambda: nnx.LinearGeneral(3, 4, axis=0, rngs=R), r"layer \(LinearGeneral"),
    "several features": (
        lambda: nnx.LinearGeneral(8, (3, 2, 4), use_bias=False, rngs=R),
        r"layer \(LinearGeneral: from \(8,\) to \(3, 2, 4\) features",
    ),
    "stacked signals' convolutions": (
        lambda: stacked(lambda rngs: nnx.Conv(8, 8, (3,), use_bias=False, rngs=rngs)),
        r"layer \(Conv: several convolutions, stacked",
    ),
    "stacks of stacks": (
        lambda: stacked(lambda _: stacked(lambda r: nnx.Linear(3, 4, use_bias=False, rngs=r))),
        r"layer \(Linear: several linear layers, stacked",
    ),
    "masked": (lambda: conv(mask=jnp.ones((3, 3, 2, 4))), r"layer\.mask"),
}
PLAIN = {
    "stride": lambda: conv(strides=2, padding=1),
    "SAME": lambda: conv(padding="SAME"),
    "even SAME": lambda: conv(2, 2),
    "VALID": lambda: conv(padding="VALID", strides=2),
    "1x1": lambda: conv(1, 1, strides=2, kernel_dilation=2),
    "numbers": lambda: conv(padding=(1, 1), strides=(2, 2), kernel_dilation=None),
    "groups": lambda: conv(feature_group_count=2),
    "bfloat16": lambda: conv(dtype=jnp.bfloat16),
    "default": lambda: nnx.BatchNorm(3, rngs=R),
    "a float32's epsilon": lambda: nnx.BatchNorm(3, epsilon=float(jnp.float32(1e-5)), rngs=R),
    "LinearGeneral": lambda: nnx.LinearGeneral(3, 4, rngs=R),
    "derived": Named,
}


class Holder(nnx.Module):
    def __init__(self, layer: nnx.Module):
        self.layer, self.other = layer, nnx.Linear(2, 2, rngs=R)


@pytest.mark.parametrize("case", UNTOLD)
def test_what_weights_do_not_tell_is_refused_by_name(case: str) -> None:
    make, message = UNTOLD[case]
    with pytest.raises(ValueError, match=rf"{message}.*into=module, images=") as error:
        to_torch(Holder(make()))
    assert "other" not in str(error.value).partition("give")[0].replace("another", "")


@pytest.mark.parametrize("case", NEVER)
def test_what_no_weights_can_carry_is_refused(case: str) -> None:
    make, message = NEVER[case]
    with pytest.raises(ValueError, match=message):
        to_torch(Holder(make()))
    with pytest.raises(ValueError, match=message):
        from_torch({}, Holder(make()))
    with pytest.raises(ValueError, match=message):
        to_torch(Holder(make()), into=torch.nn.Linear(2, 2), images=jnp.ones((2, 2)))


@pytest.mark.parametrize("case", PLAIN)
def test_what_pytorch_s_layer_does_too_travels(case: str) -> None:
    holder = Holder(PLAIN[case]())
    from_torch(to_torch(holder), holder)


@pytest.mark.parametrize("case", UNTOLD)
def test_from_torch_warns_of_what_weights_do_not_tell(case: str) -> None:
    make, message = UNTOLD[case]
    holder = Holder(make())
    with pytest.warns(UserWarning, match=rf"{message}.*same_logits"):
        from_torch(_weights(holder), holder)


def _weights(holder: nnx.Module) -> dict[str, torch.Tensor]:
    from bridge.weights.state import collect

    return collect(holder)


def test_every_layer_is_named_at_once() -> None:
    def nested(*makers: Callable) -> nnx.Module:
        return nnx.List([make() for make in makers])

    model = nested(UNTOLD["epsilon"][0], PLAIN["SAME"], UNTOLD["dilation"][0])
    with pytest.raises(ValueError, match=r"0 \(BatchNorm: .*\), 2 \(Conv: "):
        to_torch(model)


# Against the layers of a torch module


class Module(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module, *more: torch.nn.Module):
        super().__init__()
        self.layer, self.other = layer, torch.nn.Linear(2, 2)
        self.more = torch.nn.ModuleList(more)


def there(size: object = 3, **settings: object) -> torch.nn.Module:
    return torch.nn.Conv2d(2, 4, size, **settings)  # type: ignore[arg-type]


OTHERS: dict[str, tuple[Callable[[], nnx.Module], torch.nn.Module, str]] = {
    "none for SAME": (conv, there(), r"padding 'SAME', PyTorch's is \(0, 0\)"),
    "one for VALID": (lambda: conv(padding="VALID"), there(padding=1), "padding 'VALID'"),
    "other numbers": (lambda: conv(padding=1), there(padding=2), "padding 1, PyTorch's is"),
    "one axis": (lambda: conv(padding=1), there(padding=(1, 0)), "padding 1, PyTorch's is"),
    "same and VALID": (lambda: conv(padding="VALID"), there(padding="same"), "PyTorch's is same"),
    "circular": (
        conv,
        there(padding=1, padding_mode="circular"),
        r"padding 'SAME', PyTorch's is \(1, 1\) circular",
    ),
    "reflect for circular": (
        lambda: conv(padding="CIRCULAR"),
        there(padding=1, padding_mode="reflect"),
        "padding 'CIRCULAR'",
    ),
    "groups": (
        lambda: nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=R),
        there(padding=1),
        "feature_group_count 2, PyTorch's is 1",
    ),
    "transposed": (
        lambda: nnx.Conv(4, 4, (3, 3), rngs=R),
        torch.nn.ConvTranspose2d(4, 4, 3, padding=1),
        "PyTorch's is a ConvTranspose2d",
    ),
    "embedding": (
        lambda: nnx.Linear(3, 4, use_bias=False, rngs=R),
        torch.nn.Embedding(4, 3),
        "PyTorch's is a Embedding",
    ),
    "norm": (
        lambda: nnx.BatchNorm(3, rngs=R),
        torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        "PyTorch's is a InstanceNorm2d",
    ),
}
ALIKE: dict[str, tuple[Callable[[], nnx.Module], torch.nn.Module]] = {
    "SAME": (conv, there(padding=1)),
    "same": (conv, there(padding="same")),
    "even": (lambda: conv(2, 3), there((2, 3), padding="same")),
    "no pixels": (lambda: conv(1, 1, strides=2), there(1, stride=2, padding_mode="circular")),
    "pairs": (lambda: conv(padding=((1, 1), (2, 2))), there(padding=(1, 2))),
    "one in a list": (lambda: conv(padding=(2,)), there(padding=2)),
    "dilated": (
        lambda: conv(padding="SAME", kernel_dilation=2),
        there(padding=2, dilation=2),
    ),
    "groups": (lambda: conv(feature_group_count=2), there(padding=1, groups=2)),
    "LinearGeneral": (lambda: nnx.LinearGeneral(3, 4, rngs=R), torch.nn.Linear(3, 4)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_layers_of_a_module_with_other_settings_are_refused(case: str) -> None:
    make, layer, message = OTHERS[case]
    with pytest.raises(ValueError, match=rf"not the same network: layer \(.*{message}"):
        from_torch(Module(layer).eval(), Holder(make()))


@pytest.mark.parametrize("case", ALIKE)
def test_layers_of_a_module_that_pad_alike_are_taken(case: str) -> None:
    make, layer = ALIKE[case]
    from_torch(Module(layer).eval(), Holder(make()))


def test_a_module_may_pad_in_a_layer_of_its_own() -> None:
    with pytest.warns(UserWarning, match=r"padding 'SAME', PyTorch's is \(0, 0\)"):
        from_torch(Module(there(), torch.nn.ZeroPad2d(1)).eval(), Holder(conv()))


def test_circular_padding_of_both_is_taken() -> None:
    module = Module(there(padding=1, padding_mode="circular")).eval()
    with pytest.warns(UserWarning, match="padding 'CIRCULAR'"):
        from_torch(module, Holder(conv(padding="CIRCULAR")))


# Layers with code or hooks of their own


class Weighted(torch.nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Circular(torch.nn.Conv2d):
    def _conv_forward(self, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
        return torch.nn.functional.conv2d(x, weight, bias)


class Binary(torch.nn.Linear):
    weight = property(lambda self: self._parameters["weight"].sign())  # type: ignore[assignment]


def binary() -> torch.nn.Module:
    """As parametrizations do, whose class takes the layer's place once it has its weight."""
    layer = torch.nn.Linear(3, 4)
    layer.__class__ = Binary
    return layer


class Activated(torch.nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Frozen(torch.nn.Module):
    """As torchvision's, none of PyTorch's layers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Quiet(torch.nn.Conv2d):
    """Computes as its kind does."""

    def __init__(self) -> None:
        super().__init__(2, 4, 3, padding=1)
        self.register_load_state_dict_post_hook(lambda *_: None)

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return "quiet"


def changed(layer: torch.nn.Module, **attributes: object) -> torch.nn.Module:
    vars(layer).update(attributes)
    return layer


def hooked(layer: torch.nn.Module, *, before: bool = False) -> torch.nn.Module:
    if before:
        layer.register_forward_pre_hook(lambda _, x: (2 * x[0],))
    else:
        layer.register_forward_hook(lambda _, x, y: 2 * y)
    return layer


def norm() -> nnx.Module:
    return nnx.BatchNorm(3, rngs=R)


OWN: dict[str, tuple[Callable[[], nnx.Module], torch.nn.Module, str]] = {
    "forward": (conv, Weighted(2, 4, 3, padding=1), "Weighted with a forward of its own"),
    "convolution": (conv, Circular(2, 4, 3, padding=1), "Circular with a _conv_forward of its own"),
    "weight": (Named, binary(), "Binary with a weight of its own"),
    "norm": (norm, Activated(3), "Activated with a forward of its own"),
    "no kind": (norm, Frozen(), "Frozen, none of PyTorch's layers"),
    "replaced": (
        conv,
        changed(there(padding=1), forward=lambda x: x),
        "Conv2d with a forward of its own",
    ),
    "replaced within": (
        conv,
        changed(there(padding=1), _conv_forward=lambda *x: x),
        "Conv2d with a _conv_forward of its own",
    ),
    "hook": (conv, hooked(there(padding=1)), r"Conv2d: a forward hook"),
    "hook before": (conv, hooked(there(padding=1), before=True), r"Conv2d: a forward hook"),
    "own code in Flax": (
        lambda: Standardised(2, 4, (3, 3), rngs=R),
        there(padding=1),
        "Standardised: with a __call__ of its own",
    ),
    "Linen": (of_linen, there(padding=1), "ToNNX: a Linen module"),
    "product": (GIVEN["product"][0], torch.nn.Linear(3, 4), "Linear: with a dot_general"),
    "convolution's product": (
        GIVEN["convolution's product"][0],
        there(padding=1),
        "Conv: with a conv_general_dilated of its own",
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_layers_with_code_of_their_own_need_images(case: str) -> None:
    make, layer, message = OWN[case]
    with pytest.raises(ValueError, match=rf"layer \(.*{message}.*images=images"):
        from_torch(Module(layer).eval(), Holder(make()))


def test_a_hook_of_a_container_needs_images() -> None:
    module = Module(there(padding=1), hooked(torch.nn.Identity())).eval()
    with pytest.raises(ValueError, match=r"more\.0 \(Identity: a forward hook\).*images=images"):
        from_torch(module, Holder(conv()))
    with pytest.raises(ValueError, match=r"the module \(Module: a forward hook\)"):
        from_torch(hooked(Module(there(padding=1)).eval()), Holder(conv()))


def test_layers_that_only_prepare_otherwise_are_taken() -> None:
    from_torch(Module(Quiet()).eval(), Holder(conv()))
    from_torch(Module(torch.nn.SyncBatchNorm(3)).eval(), Holder(norm()))


def test_settings_are_compared_where_one_network_has_a_prefix() -> None:
    class Outer(nnx.Module):
        def __init__(self, model: nnx.Module):
            self.model = model

    class TorchOuter(torch.nn.Module):
        def __init__(self, model: torch.nn.Module):
            super().__init__()
            self.model = model

    other, model = Module(there(padding=2)).eval(), Holder(conv())
    for module, given in ((other, Outer(model)), (TorchOuter(other), model)):
        with pytest.raises(ValueError, match=r"layer \(Conv: padding 'SAME', PyTorch's is \(2, 2"):
            from_torch(module, given)

"""What the type of a layer says: settings that leave no trace in the weights."""

from collections.abc import Callable

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from bridge import from_torch, to_torch

R = nnx.Rngs(0)


def conv(*size: int, **settings: object) -> nnx.Conv:
    return nnx.Conv(2, 4, size or (3, 3), **settings, rngs=R)  # type: ignore[arg-type]


UNTOLD = {
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
    "axis": (lambda: nnx.BatchNorm(3, axis=1, rngs=R), "BatchNorm: axis 1"),
    "LayerNorm": (
        lambda: nnx.LayerNorm(3, use_bias=False, use_scale=False, rngs=R),
        "LayerNorm: epsilon 1e-06",
    ),
}
NEVER = {
    "transposed": (lambda: nnx.ConvTranspose(2, 4, (3, 3), rngs=R), r"layer \(ConvTranspose"),
    "einsum": (lambda: nnx.Einsum("ab,cb->ac", (4, 3), rngs=R), r"layer \(Einsum"),
    "first axis": (lambda: nnx.LinearGeneral(3, 4, axis=0, rngs=R), r"layer \(LinearGeneral"),
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

"""Architecture of the ResNets; `bridge/weights/test_state.py` compares them with PyTorch."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv.models import ResNet, ResNet18, ResNet50
from tests.refusals import unchecked_annotations


def shapes_of(build: Callable[..., ResNet], *args: Any, **settings: Any) -> ResNet:
    """The model's shapes and types without its values."""
    return nnx.eval_shape(lambda: build(*args, rngs=nnx.Rngs(0), **settings))


def logits_shape(model: ResNet, *image: int) -> tuple[int, ...]:
    model.eval()
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images).shape


def paths(model: ResNet, kind: Any) -> dict[tuple[Any, ...], tuple[int, ...]]:
    return {path: v.shape for path, v in nnx.to_flat_state(nnx.state(model, kind))}


@pytest.mark.parametrize(("build", "count"), [(ResNet18, 11_689_512), (ResNet50, 25_557_032)])
def test_imagenet_models_have_the_published_size(build: Callable[..., ResNet], count: int) -> None:
    model = shapes_of(build)
    assert sum(map(math.prod, paths(model, nnx.Param).values())) == count
    assert logits_shape(model, 224, 224, 3) == (2, 1000)


@pytest.mark.parametrize("build", [ResNet18, ResNet50])
def test_cifar_models_keep_the_resolution_in_the_stem(build: Callable[..., ResNet]) -> None:
    model = shapes_of(build, 10, stem="cifar", width=8, in_channels=1)
    params = paths(model, nnx.Param)
    assert params["conv1", "kernel"] == (3, 3, 1, 8)
    assert params["fc", "kernel"] == (8 * 8 * (1 if build is ResNet18 else 4), 10)
    assert logits_shape(model, 8, 8, 1) == (2, 10)
    # 9 pixels: three halvings after the stem leave 2, which only explicit padding rounds up.
    assert logits_shape(model, 9, 9, 1) == (2, 10)


def test_paths_mirror_torchvision_s_names() -> None:
    model = shapes_of(ResNet18, 10, stem="cifar", width=8)
    params, statistics = paths(model, nnx.Param), paths(model, nnx.BatchStat)
    assert params["layer1", 0, "conv1", "kernel"] == (3, 3, 8, 8)
    assert params["layer4", 1, "bn2", "scale"] == (64,)
    assert params["layer2", 0, "downsample", 0, "kernel"] == (1, 1, 8, 16)
    assert statistics["layer2", 0, "downsample", 1, "mean"] == (16,)
    assert not any(path[:3] == ("layer1", 0, "downsample") for path in params)
    bottleneck = paths(shapes_of(ResNet50, 10, stem="cifar", width=8), nnx.Param)
    assert bottleneck["layer1", 2, "conv3", "kernel"] == (1, 1, 8, 32)
    assert bottleneck["layer1", 0, "downsample", 0, "kernel"] == (1, 1, 8, 32)
    assert {path[1] for path in bottleneck if path[0] == "layer3"} == set(range(6))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    model = shapes_of(ResNet18, 10, stem="cifar", width=8, dtype=jnp.bfloat16)
    assert {v.dtype for _, v in nnx.to_flat_state(nnx.state(model))} == {np.dtype("float32")}
    model.eval()
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
    assert logits.dtype == jnp.bfloat16


@pytest.fixture
def without_type_checks() -> Any:
    """What a user has: the checks of these tests would refuse the arguments first."""
    with unchecked_annotations():
        yield


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stem": "resnet"}, "unknown stem 'resnet'; use 'cifar' or 'imagenet'"),
        ({"num_classes": 1}, "at least two classes.*num_classes=1"),
        ({"width": 0}, "width.*at least 1.*width=0"),
        ({"in_channels": 0}, "in_channels of at least 1.*in_channels=0"),
    ],
)
def test_impossible_models_are_refused(settings: dict[str, Any], message: str) -> None:
    build = partial(ResNet18, **settings)
    with pytest.raises(ValueError, match=message):
        build(rngs=nnx.Rngs(0))

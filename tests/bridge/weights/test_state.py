"""Weights from Flax to PyTorch and back, checked by the logits of the two twins."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import jaxcurv
import jaxcurv.models
from bridge import from_torch, same_logits, to_torch
from bridge.weights import Checkpoint, load_weights, resnet18, resnet50, save_weights
from jaxcurv import data
from jaxcurv.models.resnet import BasicBlock, ResNet

FLAX = {"resnet18": jaxcurv.models.ResNet18, "resnet50": jaxcurv.models.ResNet50}
TORCH = {"resnet18": resnet18, "resnet50": resnet50}


def with_random_values(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """The model in eval mode; no variable, BatchNorm's included, has a trivial value."""
    model = nnx.eval_shape(make)
    rng = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, variable.shape)
        elif path[-1] == "kernel":
            value = rng.normal(size=variable.shape) / np.sqrt(np.prod(variable.shape[:-1]))
        else:
            value = rng.normal(0, 0.3, variable.shape)
        variable.set_value(jnp.asarray(value, jnp.float32))
    model.eval()
    return model


def flax_resnet(name: str = "resnet18", stem: str = "cifar", seed: int = 0) -> nnx.Module:
    """A narrow ResNet-18 or ResNet-50."""
    return with_random_values(
        lambda: FLAX[name](num_classes=7, stem=stem, width=4, rngs=nnx.Rngs(0)), seed
    )


def shallow_resnet(
    seed: int = 0, depths: tuple[int, int, int, int] = (1, 1, 0, 0), **settings: Any
) -> nnx.Module:
    """A narrow ResNet of a block in each of the first two stages, unless given otherwise."""
    settings = {"block": BasicBlock, "stem": "cifar", "in_channels": 3} | settings
    settings = {"num_classes": 7, "width": 4, "dtype": jnp.float32} | settings
    return with_random_values(lambda: ResNet(depths=depths, rngs=nnx.Rngs(0), **settings), seed)


@nnx.jit
def forward(model: nnx.Module, images: jnp.ndarray) -> jnp.ndarray:
    return model(images)


def logits_of_flax(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    return np.asarray(forward(model, jnp.asarray(images)))


def logits_of_twin(
    state_dict: dict[str, torch.Tensor], images: np.ndarray, name: str, stem: str
) -> np.ndarray:
    twin = TORCH[name](num_classes=7, stem=stem, width=4)
    twin.load_state_dict(state_dict)
    with torch.inference_mode():
        return twin.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def enlarged_digits(size: int) -> np.ndarray:
    """Real images, float32 `[3, size, size, 3]`."""
    digits = data.load("digits").test
    pixels = np.stack([digits[position]["image"] for position in range(3)])
    enlarged = pixels.repeat(5, axis=1).repeat(5, axis=2).repeat(3, axis=3)
    middle = slice((40 - size) // 2, (40 + size) // 2)
    return (enlarged[:, middle, middle] / 127.5 - 1).astype(np.float32)


def assert_twins_agree_both_ways(name: str, stem: str) -> None:
    size = 32 if stem == "imagenet" else 20  # even: an asymmetric padding shows
    images = enlarged_digits(size)
    model = flax_resnet(name, stem)
    expected = logits_of_flax(model, images)
    state_dict = to_torch(model)
    assert relative_error(logits_of_twin(state_dict, images, name, stem), expected) < 1e-4
    assert np.std(expected, axis=0).min() > 1e-3 * np.abs(expected).max()  # images matter

    other = flax_resnet(name, stem, seed=5)
    back = from_torch(state_dict, other)
    np.testing.assert_array_equal(logits_of_flax(back, images), expected)
    assert relative_error(logits_of_flax(other, images), expected) > 0.1  # untouched


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "imagenet"), ("resnet50", "cifar")])
def test_twins_agree_both_ways(name: str, stem: str) -> None:
    assert_twins_agree_both_ways(name, stem)


def test_state_dict_survives_the_round_trip_exactly() -> None:
    state_dict = to_torch(shallow_resnet())
    again = to_torch(from_torch(state_dict, shallow_resnet(seed=3)))
    assert again.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(
    ("name", "entries", "millions"), [("resnet18", 122, 11.689512), ("resnet50", 320, 25.557032)]
)
def test_names_and_sizes_are_torchvision_s(name: str, entries: int, millions: float) -> None:
    with torch.device("meta"):
        twin = TORCH[name]()
    assert sum(p.numel() for p in twin.parameters()) == round(millions * 1e6)
    shapes = {key: tuple(tensor.shape) for key, tensor in twin.state_dict().items()}
    assert len(shapes) == entries
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["bn1.num_batches_tracked"] == ()
    assert shapes["fc.weight"] == (1000, 512 if name == "resnet18" else 2048)
    assert shapes["layer4.0.downsample.0.weight"][1] == (256 if name == "resnet18" else 1024)
    assert "layer4.0.downsample.1.running_var" in shapes
    assert ("layer1.0.downsample.0.weight" in shapes) == (name == "resnet50")
    assert to_torch(flax_resnet(name)).keys() == shapes.keys()


def test_bottleneck_strides_in_its_3x3() -> None:
    block = resnet50(width=4).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_every_mismatch_is_listed_at_once() -> None:
    model = shallow_resnet()
    state_dict = to_torch(model)
    del state_dict["fc.bias"]
    state_dict["extra.weight"] = torch.zeros(2)
    state_dict["conv1.weight"] = torch.zeros(4, 1, 3, 3)
    with pytest.raises(ValueError, match="do not fit") as error:
        from_torch(state_dict, model)
    message = str(error.value)
    assert "missing fc.bias (7,)" in message
    assert "unexpected extra.weight" in message
    assert "conv1.weight has shape (4, 1, 3, 3), not (4, 3, 3, 3)" in message


def test_counters_may_be_absent() -> None:
    model = shallow_resnet()
    state_dict = {n: t for n, t in to_torch(model).items() if "num_batches" not in n}
    from_torch(state_dict, model)


def test_non_finite_weights_are_refused_by_name() -> None:
    model = shallow_resnet()
    state_dict = to_torch(model)
    state_dict["layer1.0.bn1.running_var"][0] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite.*layer1\.0\.bn1\.running_var"):
        from_torch(state_dict, model)
    model.fc.kernel[...] = model.fc.kernel[...].at[0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match=r"non-finite.*fc\.weight"):
        to_torch(model)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nnx.LayerNorm(3, rngs=nnx.Rngs(0)), r"scale \(3,\)"),
        (nnx.Embed(3, 2, rngs=nnx.Rngs(0)), r"embedding \(3, 2\)"),
        (nnx.Conv(2, 2, 3, rngs=nnx.Rngs(0)), r"kernel \(3, 2, 2\)"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nnx.Module) else "",
)
def test_unknown_variables_are_refused_by_name(layer: nnx.Module, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        to_torch(layer)


def test_file_round_trip(tmp_path) -> None:
    state_dict, header = to_torch(shallow_resnet()), {"model": "resnet18", "classes": 7}
    path = tmp_path / "weights.safetensors"
    save_weights(path, state_dict, {"model": "older"})
    save_weights(path, state_dict, header)
    loaded, loaded_header = load_weights(path)
    assert loaded_header == header
    assert loaded.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_refused_save_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="float64"):
        save_weights(path, {"a": torch.ones(2, dtype=torch.float64)}, {})
    with pytest.raises(ValueError, match="non-finite weights in a"):
        save_weights(path, {"a": torch.full((2,), torch.nan)}, {})
    with pytest.raises(ValueError, match="not plain JSON"):
        save_weights(path, {"a": torch.ones(2)}, {"x": object()})
    assert torch.equal(load_weights(path)[0]["a"], torch.ones(2))


def test_unreadable_files_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_weights(tmp_path / "absent.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_weights(damaged)


class Dropping(nnx.Module):
    """Holds random state in a Dropout, in streams of its own and in a layer's list."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.tail = nnx.List([nnx.Dropout(0.2, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)])
        self.streams = nnx.Rngs(params=1, noise=2)
        self.sown = nnx.Intermediate((jnp.ones(2), jnp.ones(3)))

    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        x = self.drop(self.conv(x).mean((1, 2)))
        return self.tail[1](self.tail[0](x))


class DroppingTorch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.tail = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.conv(x).mean((2, 3)))


def test_random_state_is_no_weight() -> None:
    model, module = Dropping(nnx.Rngs(0)), DroppingTorch()
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    state_dict = to_torch(model, into=module, images=images)
    assert state_dict.keys() == {"conv.weight", "conv.bias", "tail.1.weight", "tail.1.bias"}
    other = Dropping(nnx.Rngs(7))
    other(jnp.asarray(images))  # which draws
    before = nnx.to_pure_dict(nnx.state(other, nnx.RngState))
    back = from_torch(state_dict, other)
    after = nnx.to_pure_dict(nnx.state(back, nnx.RngState))
    assert repr(after) == repr(before)
    assert not back.drop.deterministic
    drawn = np.asarray(back(jnp.asarray(images)))
    assert repr(nnx.to_pure_dict(nnx.state(other, nnx.RngState))) == repr(before)  # its own
    assert not np.array_equal(drawn, np.asarray(back(jnp.asarray(images))))
    for one in (model, back):
        one.eval()
    np.testing.assert_array_equal(logits_of_flax(back, images), logits_of_flax(model, images))


def test_random_state_of_a_model_without_values_can_be_drawn_from() -> None:
    abstract = nnx.eval_shape(lambda: Dropping(nnx.Rngs(0)))
    model = from_torch(to_torch(Dropping(nnx.Rngs(0))), abstract)
    images = jnp.ones((4, 8, 8, 3))
    drawn = np.asarray(forward(model, images))
    assert not np.array_equal(drawn, np.asarray(forward(model, images)))
    assert model.drop.rngs.key[...] != model.tail[0].rngs.key[...]
    model.eval()
    scored = jaxcurv.input_curvature(model, np.asarray(images), np.zeros(4, int), indices=range(4))
    assert np.isfinite(scored.score).all()


def test_a_prefix_that_all_names_have_is_no_mismatch() -> None:
    class Holder(nnx.Module):
        def __init__(self, model: nnx.Module):
            self.model = model

    model = shallow_resnet()
    plain = to_torch(model)
    prefixed = {f"model.{name}": tensor for name, tensor in plain.items()}
    for given, onto in ((prefixed, model), (plain, Holder(model)), (prefixed, Holder(model))):
        back = to_torch(from_torch(given, onto))
        assert all(torch.equal(back[name], tensor) for name, tensor in to_torch(onto).items())
    with pytest.raises(ValueError, match=r"missing conv1\.weight .*unexpected net\.conv1"):
        from_torch({f"net.{name}": tensor for name, tensor in plain.items()}, model)


class OfLinen(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.BatchNorm(use_running_average=True, name="norm")(linen.Dense(3, name="in")(x))
        return linen.Dense(2, name="out")(x)


def test_the_way_from_linen_that_the_message_names_works() -> None:
    module, images = OfLinen(), jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), "f4")
    variables = module.init(jax.random.key(1), images)
    variables["batch_stats"]["norm"]["mean"] += 0.5
    with pytest.raises(TypeError, match=r"ToNNX\(module.*for each part of variables.values"):
        to_torch(variables)  # type: ignore[arg-type]
    wrapped = nnx.bridge.lazy_init(nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)), images)
    for part in variables.values():
        nnx.update(wrapped, part)
    parts = {
        "in": torch.nn.Linear(5, 3),
        "norm": torch.nn.BatchNorm1d(3),
        "out": torch.nn.Linear(3, 2),
    }
    there = torch.nn.Sequential(OrderedDict(parts)).eval()
    to_torch(wrapped, into=there, images=images)
    found = there(torch.from_numpy(np.array(images))).detach().numpy()
    np.testing.assert_allclose(found, module.apply(variables, images), atol=1e-6)


def test_what_is_no_model_or_state_dict_is_refused() -> None:
    model, module = shallow_resnet(), torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="model must be a Flax NNX module, not Linear"):
        to_torch(module)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a Flax NNX module, not Linear"):
        from_torch({}, module)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="shapes and no values"):
        to_torch(nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0))))
    with pytest.raises(TypeError, match=r"not Checkpoint.*\.state_dict"):
        from_torch(Checkpoint(to_torch(model), {}), model)  # type: ignore[arg-type]
    arrays = {name: tensor.numpy() for name, tensor in to_torch(model).items()}
    with pytest.raises(TypeError, match=r"conv1\.weight.*torch\.from_numpy"):
        from_torch(arrays, model)  # type: ignore[arg-type]
    checkpoint = {"epoch": 3, "model_state_dict": to_torch(model), "optimizer": {"state": {}}}
    with pytest.raises(TypeError, match=r"a checkpoint, of epoch.*\['model_state_dict'\]"):
        from_torch(checkpoint, model)  # type: ignore[arg-type]


class One(nnx.Module):
    """A linear layer `fc`, or one within a sequence."""

    def __init__(self, sequence: bool = False):
        fc = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.fc = nnx.Sequential(fc) if sequence else fc

    def __call__(self, x: Any) -> Any:
        return self.fc(x)


@pytest.mark.parametrize(
    ("sequence", "names", "unexpected"),
    [
        (False, ["fc.weight", "fc.bias", "module.fc.weight"], ["module.fc.weight"]),
        (False, ["module.fc.weight", "module.fc.bias", "fc.weight"], ["module.fc.weight"]),
        (False, ["fc.weight", "fc.bias", "_orig_mod.fc.bias"], ["_orig_mod.fc.bias"]),
        (False, ["model.fc.weight", "fc.bias"], ["model.fc.weight"]),
        (True, ["fc.0.weight", "fc.0.bias", "fc.layers.0.weight"], ["fc.0.weight", "fc.0.bias"]),
        (True, ["module.fc.0.weight", "fc.layers.0.weight", "fc.0.bias"], ["module.fc.0.weight"]),
    ],
)
def test_names_that_differ_by_a_prefix_alone_are_not_one(
    sequence: bool, names: list[str], unexpected: list[str]
) -> None:
    tensors = {
        name: torch.full((3, 2) if name.endswith("weight") else (3,), float(n))
        for n, name in enumerate(names)
    }
    for given in (tensors, dict(reversed(tensors.items()))):
        with pytest.raises(ValueError, match="weights do not fit the model") as told:
            from_torch(given, One(sequence))
        assert all(f"unexpected {name}" in str(told.value) for name in unexpected)


class Strided(torch.nn.Module):
    def __init__(self, stride: int):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(2, 3, 3, stride), torch.nn.Linear(3, 4)


class FlaxStrided(nnx.Module):
    def __init__(self) -> None:
        self.conv = nnx.Conv(2, 3, (3, 3), 2, padding="VALID", rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(3, 4, rngs=nnx.Rngs(0))


class Compiled(torch.nn.Module):
    """As what `torch.compile` returns, which takes seconds to import."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self._orig_mod = module


def compiled_layer(module: Strided) -> torch.nn.Module:
    module.conv = Compiled(module.conv)  # type: ignore[assignment]
    return module


def parallel_layer(module: Strided) -> torch.nn.Module:
    module.conv = torch.nn.DataParallel(module.conv)  # type: ignore[assignment]
    return module


WRAPPED: dict[str, Callable[[Strided], torch.nn.Module]] = {
    "averaged": AveragedModel,
    "parallel": torch.nn.DataParallel,
    "compiled": Compiled,
    "averaged and parallel": lambda module: AveragedModel(torch.nn.DataParallel(module)),
    "compiled and parallel": lambda module: Compiled(torch.nn.DataParallel(module)),
    "a compiled layer": compiled_layer,
    "a parallel layer": parallel_layer,
    "averaged, with a parallel layer": lambda module: AveragedModel(parallel_layer(module)),
    "averaged, with a compiled layer": lambda module: AveragedModel(compiled_layer(module)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_seen_through(name: str) -> None:
    plain = Strided(2)
    module, model = WRAPPED[name](deepcopy(plain)), FlaxStrided()
    for given in (module, module.state_dict()):
        carried = to_torch(from_torch(given, model))
        assert all(torch.equal(carried[key], one) for key, one in plain.state_dict().items())
    with pytest.raises(ValueError, match=r"conv \(Conv: strides 2, PyTorch's are \(1, 1\)\)"):
        from_torch(WRAPPED[name](Strided(1)), model)


def test_a_part_in_a_wrapper_takes_and_gives_weights() -> None:
    class Flax(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.features = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu)
            self.fc = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.fc(self.features(x))

    def network(wrap: Callable) -> torch.nn.Module:
        parts = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        whole: dict[str, torch.nn.Module] = {"features": wrap(parts), "fc": torch.nn.Linear(4, 3)}
        return torch.nn.Sequential(OrderedDict(whole))

    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for wrap in (torch.nn.DataParallel, lambda part: torch.nn.Sequential(part)):
        module = network(wrap)
        if wrap is torch.nn.DataParallel:
            to_torch(from_torch(module, Flax()), into=network(wrap), images=x)
            lightning = {f"model.{name}": one for name, one in module.state_dict().items()}
            from_torch(lightning, Flax())
        else:
            with pytest.raises(ValueError, match=r"unexpected features\.0\.0\.weight"):
                from_torch(module, Flax())


def test_an_attribute_of_a_wrapper_s_name_is_the_network_s_own() -> None:
    class Inner(nnx.Module):
        def __init__(self) -> None:
            self.module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

    weights = {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)}
    for prefix in ("", "model.", "module.", "_orig_mod."):
        from_torch({prefix + name: one for name, one in weights.items()}, Inner())
    with pytest.raises(ValueError, match=r"missing module\.weight"):
        from_torch({}, Inner())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str
)
def test_weights_of_every_float_type_are_carried(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(3, 2).to(dtype)
    expected = layer.weight.detach().to(torch.float32).numpy().T
    for given in (layer, layer.state_dict()):
        model = from_torch(given, nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        assert model.kernel[...].dtype == jnp.float32
        np.testing.assert_array_equal(model.kernel[...], expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, that these kinds are beta or old
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.nn.Linear(3, 2, device="meta"), r"weight, bias.*without values \(meta\).*load"),
        (torch.nn.LazyLinear(2), r"weight.*no shape yet \(lazy\): call the module once"),
        (lambda one: one.to_sparse(), r"^weight .*sparse.*to_dense\(\)"),
        (lambda one: one.to_sparse_csr(), r"^weight .*sparse.*to_dense\(\)"),
        (
            lambda one: torch.quantize_per_tensor(one, 0.1, 0, torch.qint8),
            r"^weight .*quantised.*dequantize\(\)",
        ),
        (lambda one: one.to(torch.complex64), "^weight .*complex.*no weights"),
    ],
    ids=["meta", "lazy", "sparse", "sparse rows", "quantised", "complex"],
)
def test_tensors_that_hold_no_plain_numbers_are_refused_by_name(given: Any, message: str) -> None:
    if not isinstance(given, torch.nn.Module):
        state_dict = torch.nn.Linear(3, 2).state_dict()
        given = state_dict | {"weight": given(state_dict["weight"])}
    with pytest.raises(ValueError, match=message):
        from_torch(given, nnx.Linear(3, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.int32, torch.bool], ids=str
)
def test_weights_that_are_whole_numbers_are_refused_by_name(dtype: torch.dtype) -> None:
    state_dict = {k: (v * 9).to(dtype) for k, v in torch.nn.Linear(3, 2).state_dict().items()}
    with pytest.raises(ValueError, match=r"^weights must be floats; weight \(torch.*dequantised"):
        from_torch(state_dict, nnx.Linear(3, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bool_, jnp.complex64])
def test_variables_that_are_no_floats_are_refused_by_name(dtype: Any) -> None:
    model, state_dict = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), torch.nn.Linear(3, 2).state_dict()
    model.kernel = nnx.Param(jnp.ones((3, 2), dtype))
    for call in (lambda: to_torch(model), lambda: from_torch(state_dict, model)):
        with pytest.raises(ValueError, match=rf"kernel \({jnp.dtype(dtype)}: dequantise"):
            call()


# Layers that a network has under several names


class Tied(nnx.Module):
    """Two layers; the second is the first (`whole`), has its kernel, or is one of its own."""

    def __init__(self, tie: str = "whole"):
        rngs = nnx.Rngs(0)
        self.b = nnx.Linear(3, 3, rngs=rngs)
        self.a = self.b if tie == "whole" else nnx.Linear(3, 3, rngs=rngs)
        if tie == "kernel":
            self.a.kernel = self.b.kernel
        self.blocks = nnx.List([self.a, nnx.BatchNorm(3, use_running_average=True, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        return self.blocks[1](self.b(self.a(x)))


class TiedTorch(torch.nn.Module):
    def __init__(self, tie: str = "whole"):
        super().__init__()
        self.b = torch.nn.Linear(3, 3)
        self.a = self.b if tie == "whole" else torch.nn.Linear(3, 3)
        if tie == "kernel":
            self.a.weight = self.b.weight
        self.blocks = torch.nn.ModuleList([self.a, torch.nn.BatchNorm1d(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.b(self.a(x)))


VECTORS = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize("tie", ["whole", "kernel"])
def test_shared_layers_travel_both_ways(tie: str, tmp_path: Any) -> None:
    module, model = TiedTorch(tie).eval(), Tied(tie)
    assert to_torch(model, into=module, images=VECTORS).keys() == module.state_dict().keys()
    module.load_state_dict(to_torch(with_random_values(lambda: Tied(tie), 3)))
    save_weights(tmp_path / "w.safetensors", module.state_dict(), {})
    stored = load_weights(tmp_path / "w.safetensors")[0]
    for given in (module, module.state_dict(), stored):
        carried = from_torch(given, model)
        assert carried.a.kernel is carried.b.kernel
        assert same_logits(carried, module, VECTORS)
    without = {name: one for name, one in stored.items() if not name.startswith("blocks.0.")}
    assert same_logits(from_torch(without, model), module, VECTORS)
    with pytest.raises(ValueError, match=r"missing b\.bias"):
        from_torch({name: one for name, one in without.items() if "b.bias" not in name}, Tied("no"))


def test_one_network_alone_may_share() -> None:
    shared, apart = TiedTorch().eval(), TiedTorch("no").eval()
    carried = from_torch(shared, Tied("no"))
    assert same_logits(carried, shared, VECTORS)
    to_torch(Tied(), into=apart, images=VECTORS)
    to_torch(carried, into=shared, images=VECTORS)
    with pytest.raises(ValueError, match=r"b\.weight is not a\.weight, and the model has both"):
        from_torch(TiedTorch("no"), Tied())
    with pytest.raises(ValueError, match="not the same network"):
        to_torch(with_random_values(lambda: Tied("no")), into=TiedTorch(), images=VECTORS)

    class Fewer(nnx.Module):
        def __init__(self) -> None:
            self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    pair = torch.nn.ModuleDict({"a": shared.a, "again": shared.a})
    from_torch(torch.nn.DataParallel(pair), Fewer())
    equal = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    with pytest.raises(ValueError, match=r"unexpected again\.weight"):
        from_torch(equal, Fewer())  # it may be another layer, whose weights happen to be equal


def test_a_layer_that_knows_its_parent_is_no_shared_one() -> None:
    class Parent(nnx.Module):
        def __init__(self) -> None:
            self.layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.layer.parent = self

    assert to_torch(Parent()).keys() == {"layer.weight", "layer.bias"}


def spectral(layer: torch.nn.Module) -> None:
    torch.nn.utils.spectral_norm(layer)


def weight_norm(layer: torch.nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"prune\.remove\("),
        (torch.nn.utils.parametrizations.weight_norm, r"parametrize\.remove_parametrizations\("),
        (torch.nn.utils.parametrizations.orthogonal, r"parametrize\.remove_parametrizations\("),
        (weight_norm, r"remove_weight_norm\("),
        (spectral, r"remove_spectral_norm\("),
    ],
    ids=["pruned", "weight norm", "orthogonal", "older weight norm", "older spectral norm"],
)
def test_weights_that_are_computed_from_others_are_told_with_the_cure(
    change: Callable, cure: str
) -> None:
    module, model = torch.nn.Linear(3, 3), nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    change(module)
    for call in (
        lambda: from_torch(module, model),
        lambda: from_torch(module.state_dict(), model),
        lambda: to_torch(model, into=module, images=VECTORS),
    ):
        with pytest.raises(ValueError, match=rf"weights do not fit .*; weights .*{cure}"):
            call()

"""What `to_jax` takes and gives: batch sizes, weights, shared programs, what it refuses."""

import os
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bridge
from tests.torch_networks import CifarResNet, Words, made, mobilenet_v3, randomised

RNG = np.random.default_rng(0)


class Net(nn.Module):
    """A linear layer on a flattened image, between two functions of the test's."""

    def __init__(self, before=lambda x: x.flatten(1), after=lambda x: x):
        super().__init__()
        self.fc = nn.Linear(3 * 4 * 4, 5)
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.fc(self.before(x)))


def net(*functions) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(*functions).eval()


def images(count: int = 2) -> np.ndarray:
    return RNG.normal(size=(count, 4, 4, 3)).astype(np.float32)


def in_torch(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_what_torch_writes_later_stays_torch_s():
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 5))
    logits_fn, params = bridge.to_jax(module.eval(), batch := images())
    before = {name: np.array(one) for name, one in params.items()}
    expected = in_torch(module, batch)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor += 1
    for name, one in params.items():
        np.testing.assert_array_equal(one, before[name], err_msg=name)
    close(logits_fn(params, batch), expected)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x.flatten(1),
        lambda x: x.reshape(len(x), -1),
        lambda x: torch.stack([one.flatten() for one in x]),
        lambda x: x.reshape(x.shape[0], -1) if x.shape[0] < 3 else x.flatten(1),
    ],
    ids=["any size", "len(x)", "a loop", "a branch on the size"],
)
def test_logits_are_the_module_s_at_every_batch_size(before):
    module = net(before)
    logits_fn, params = bridge.to_jax(module, images())
    for count in (1, 2, 5):
        x = images(count)
        close(logits_fn(params, x), in_torch(module, x))
        close(jax.jit(logits_fn)(params, x), in_torch(module, x))


def test_a_module_that_reads_the_size_is_that_of_the_call():
    module = net(lambda x: x.reshape(len(x), -1))
    logits_fn, params = bridge.to_jax(module, images())
    x = images(3)
    expected = in_torch(module, x)
    module.before = lambda x: 2 * x.reshape(len(x), -1)
    module.train()
    close(logits_fn(params, x), expected)


def test_a_tensor_and_an_array_are_each_in_their_layout():
    module, x = net(), images()
    one, _ = bridge.to_jax(module, x)
    other, params = bridge.to_jax(module, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    assert one == other
    close(other(params, x), in_torch(module, x))


def test_one_example_is_enough():
    module = net()
    logits_fn, params = bridge.to_jax(module, images(1))
    x = images(4)
    close(logits_fn(params, x), in_torch(module, x))


def test_signals_and_sequences_are_as_the_module_takes_them():
    module, shape = made("keyword spotting")
    x = RNG.normal(size=(2, *shape)).astype(np.float32)
    logits_fn, params = bridge.to_jax(module, x)
    close(logits_fn(params, x), module(torch.from_numpy(x)).detach().numpy())


def test_token_ids_and_tied_weights():
    module = randomised(Words())
    ids = RNG.integers(0, 10, (3, 4))
    logits_fn, params = bridge.to_jax(module, ids)
    assert "head.weight" not in params
    with torch.no_grad():
        close(logits_fn(params, ids), module(torch.from_numpy(ids)).numpy())
        doubled = params | {"embedding.weight": 2 * params["embedding.weight"]}
        module.embedding.weight.mul_(2)
        close(logits_fn(doubled, ids), module(torch.from_numpy(ids)).numpy())


def test_params_are_the_floating_tensors_that_logits_depend_on():
    module, shape = made("Swin")
    _, params = bridge.to_jax(module, RNG.normal(size=(2, *shape[1:], 3)).astype(np.float32))
    floating = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    # A buffer that is not persistent is the module's too; a table of positions is no weight.
    assert set(params) == floating | {"blocks.1.attn.mask"}
    assert {array.dtype for array in params.values()} == {jnp.dtype("float32")}


class Filter(torch.nn.Module):
    """Filters signals by complex weights, and turns their phase."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = torch.nn.Parameter(torch.randn(5, dtype=torch.complex64, generator=generator))
        self.register_buffer("phase", torch.randn(5, generator=generator))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.w * torch.exp(1j * self.phase), n=8)


def test_complex_weights_are_params():
    """So that a function scores the weights that it is given, not those of the module it is of."""
    x = RNG.normal(size=(3, 8)).astype(np.float32)
    logits_fn, params = bridge.to_jax(Filter(0).eval(), x)
    assert {name: one.dtype.name for name, one in params.items()} == {
        "w": "complex64",
        "phase": "float32",
    }
    other = Filter(1).eval()
    _, others = bridge.to_jax(other, x)
    with torch.no_grad():
        close(logits_fn(others, x), other(torch.from_numpy(x)).numpy())


def test_modules_of_one_architecture_share_a_program():
    traces = 0

    def counted(logits_fn):
        def run(params, x):
            nonlocal traces
            traces += 1
            return logits_fn(params, x)

        return run

    x = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
    one, params = bridge.to_jax(made("VGG", 0)[0], x)
    two, others = bridge.to_jax(made("VGG", 1)[0], x)
    assert one == two
    assert hash(one) == hash(two)
    program = jax.jit(lambda fn, params, x: counted(fn)(params, x), static_argnums=0)
    assert not np.allclose(program(one, params, x), program(two, others, x))
    assert traces == 1
    wider, _ = bridge.to_jax(mobilenet_v3().eval(), x)
    assert one != wider


def test_stacked_weights_are_mapped_over():
    x = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
    modules = [made("ViT", seed)[0] for seed in (0, 1)]
    found = [bridge.to_jax(module, x) for module in modules]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(params for _, params in found))
    logits = jax.jit(jax.vmap(found[0][0], (0, None)))(stacked, x)
    for one, module in zip(logits, modules, strict=True):
        close(one, in_torch(module, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_is_computed_in_float32(dtype):
    module = net().to(dtype)
    logits_fn, params = bridge.to_jax(module, images())
    x = images(3)
    close(logits_fn(params, x), in_torch(net().to(dtype).float(), x))
    assert module.fc.weight.dtype == dtype


def test_the_module_stays_as_it_is():
    module, shape = made("TransformerEncoder")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = RNG.normal(size=(2, *shape[1:], 3)).astype(np.float32)
    expected = in_torch(module, x)
    fast = torch.backends.mha.get_fastpath_enabled()
    bridge.to_jax(module, x)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert np.array_equal(in_torch(module, x), expected)


class Moving(nn.Module):
    """Normalises, and while gradients are taken changes its own state in the way of `kind`."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.calls, self.seen, self.kept = kind, 0, [], {"mean": torch.zeros(48)}
        self.scale = nn.Parameter(torch.ones(48))
        self.register_buffer("in_place", torch.zeros(48))
        self.attribute = torch.zeros(48)

    def forward(self, x):
        means = [self.in_place, self.attribute, self.kept["mean"]]
        x = self.scale * (x.flatten(1) - sum(means))
        if torch.is_grad_enabled():
            mean = x.mean(0).detach()
            if self.kind == "buffer":
                self.in_place += 0.1 * mean
            elif self.kind == "attribute":
                self.attribute = 0.1 * mean
            elif self.kind == "dict":
                self.kept["mean"] = 0.1 * mean
            elif self.kind == "weights":
                self.scale.data = self.scale.data / 2
            elif self.kind == "in place":
                self.scale.data.mul_(0.5)
            else:
                self.calls += 1
                self.seen.append(mean)
                self.latest = mean
            if self.kind == "failing":
                raise RuntimeError("no")
        return x


@pytest.mark.parametrize("call", [bridge.to_jax, bridge.coverage], ids=["to_jax", "coverage"])
@pytest.mark.parametrize(
    "kind", ["buffer", "attribute", "dict", "weights", "in place", "lists", "failing"]
)
def test_a_module_that_changes_itself_is_left_as_it_was(kind, call):
    moving = Moving(kind)
    module = nn.Sequential(moving, nn.Linear(48, 5)).eval()
    x = images(4)
    before, names, expected = in_torch(module, x), set(vars(moving)), moving.scale
    with suppress(ValueError):  # rightly, where the gradient is that of another function
        call(module, x)
    assert np.array_equal(in_torch(module, x), before)
    assert set(vars(moving)) == names
    assert (moving.calls, moving.seen) == (0, [])
    assert moving.scale is expected


class Rounded(torch.autograd.Function):
    """Rounds, with the slope of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def without_gradient(x):
    with torch.no_grad():
        half = x / 2
    return (x + half).flatten(1)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: (x * x.detach()).flatten(1),
        without_gradient,
        lambda x: Rounded.apply(x).flatten(1),
    ],
    ids=["detach", "no_grad", "a backward of its own"],
)
def test_a_gradient_that_would_be_another_is_refused(before):
    with pytest.raises(ValueError, match="gradient differs from PyTorch's"):
        bridge.to_jax(net(before), images())


class Counting(nn.Module):
    """Another function at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(48, 5), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.calls * self.fc(x.flatten(1))


def test_other_logits_in_jax_are_refused():
    with pytest.raises(ValueError, match="logits in JAX differ from the module's"):
        bridge.to_jax(Counting().eval(), images())


def test_training_mode_is_refused_by_name():
    module = net()
    module.fc.train()
    with pytest.raises(ValueError, match=r"fc is in training mode.*eval\(\)"):
        bridge.to_jax(module, images())


def test_a_forward_pass_in_16_bits_is_named():
    def half(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, torch.linspace(-1, 1, 25).view(5, 5)).float()

    with pytest.raises(ValueError, match=r"16 bits.*torch\.autocast.*which is to be left out"):
        bridge.to_jax(net(lambda x: x.flatten(1), half), images())


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda x: (x, x), "returns a tuple.*wrap it"),
        (lambda x: {"logits": x}, "returns a dict.*wrap it"),
        (lambda x: x.sum(), "not one row each"),
        (lambda x: x.transpose(0, 1), "not one row each"),
        (lambda x: x / 0, "logits of Net are not finite"),
        (lambda x: x.topk(2)[1], "gives torch.int64, classes and not logits.*argmax"),
        (lambda x: x > 0, "gives torch.bool, classes"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(after, message):
    with pytest.raises(ValueError, match=message):
        bridge.to_jax(net(lambda x: x.flatten(1), after), images(3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, 5, 5, 3), np.float32), "fails on inputs.*give images as"),
        (images().astype(np.uint8), "give float32, normalised"),
        (images()[:0], "must be some examples"),
        ([[1.0, 2.0]], "not a list"),
    ],
)
def test_images_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        bridge.to_jax(net(), given)


def test_another_kind_of_model_is_refused():
    with pytest.raises(TypeError, match="torch module"):
        bridge.to_jax(lambda x: x, images())


def test_dropped_randomness_of_a_call_is_refused():
    with pytest.raises(ValueError, match="draws random numbers"):
        bridge.to_jax(net(lambda x: F.dropout(x.flatten(1), 0.5, True)), images())


NETS = Path(os.environ.get("JAXCURV_DATA_DIR", "nowhere")) / "external" / "nets"


@pytest.mark.skipif(not NETS.is_dir(), reason="JAXCURV_DATA_DIR has no external/nets")
def test_a_network_that_others_trained():
    (file,) = NETS.glob("akamaster_resnet20*")
    module = CifarResNet(blocks=3)
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    module.eval()
    x = RNG.normal(size=(8, 32, 32, 3)).astype(np.float32)
    logits_fn, params = bridge.to_jax(module, x[:2])
    with jax.default_matmul_precision("highest"):
        close(jax.jit(logits_fn)(params, x), in_torch(module, x))

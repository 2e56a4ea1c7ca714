"""What becomes of a module's writing in place, views and sizes, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bridge.graphs.conversion import to_jax
from bridge.graphs.export import export
from bridge.graphs.graph import run
from bridge.graphs.operators import OPERATORS
from tests.bridge.graphs.operators.against_torch import QUICKLY

X = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32))
Function = Callable[[torch.Tensor], torch.Tensor]


class _Of(nn.Module):
    """A module of one line."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def _writing(write: Callable[[torch.Tensor, torch.Tensor], object]) -> Function:
    """A function that writes into a copy of its input."""

    def function(x: torch.Tensor) -> torch.Tensor:
        copy = x.clone()
        write(copy, x)
        return copy

    return function


def _set(y: torch.Tensor, where: object, value: object) -> None:
    y[where] = value


ALL = slice(None)
WRITING: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "a column": lambda y, x: _set(y, (ALL, 0), 1.0),
    "a negative column": lambda y, x: _set(y, (ALL, ALL, -1), x[..., 0]),
    "a slice": lambda y, x: _set(y, (ALL, slice(1, 3)), x[:, :2]),
    "every second": lambda y, x: y[:, ::2].mul_(2),
    "a mask": lambda y, x: _set(y, x > 0, 0.0),
    "a mask of rows": lambda y, x: _set(y, x[:, 0, 0] > 0, 0.0),
    "positions": lambda y, x: _set(y, (ALL, [0, 3]), x[:, [1, 2]]),
    "a sum": lambda y, x: y.add_(1),
    "a view": lambda y, x: y.view(-1, 2, 8)[:, 1].zero_(),
    "a transpose": lambda y, x: y.transpose(1, 2)[:, 0].fill_(2.0),
    "a diagonal": lambda y, x: y.diagonal(dim1=1, dim2=2).fill_(0.5),
    "a copy": lambda y, x: y[:, :2].copy_(x[:, 2:]),
    "where masked": lambda y, x: y.masked_fill_(x > 0.5, 3.0),
    "relu": lambda y, x: functional.relu(y[:, 1:], inplace=True),
    "over itself": lambda y, x: _set(y, (ALL, slice(1, 4)), y[:, :3].clone()),
}


def _parted(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first * second.flip(1)], 1)


def _counted(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.new_zeros(x.shape[0], 1, 4), x * torch.arange(4)], 1) / x.shape[1]


READING: dict[str, Function] = {
    "chunk": _parted,
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1) * 2,
    "split": lambda x: x.split([1, 3], 2)[1] + x.split(3, 2)[1],
    "tensor_split": lambda x: x.tensor_split(3, 1)[0],
    "flipped every second": lambda x: x.flip(1)[:, ::2],
    "from behind": lambda x: x[:, -3:-1, -1],
    "a new axis": lambda x: x[:, None, ..., 0],
    "positions": lambda x: x[:, [-1, 0]][..., torch.tensor([[0, 1], [2, 2]])],
    "rows by their largest": lambda x: x[torch.arange(x.shape[0]), 1, x[:, 0].argmax(1)],
    "windows": lambda x: x.unfold(1, 2, 1) + 1,
    "sizes": _counted,
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "spectrum": lambda x: torch.fft.rfft(x, dim=1).abs(),
    "both spectra": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), norm="ortho"),
    "roll and rotate": lambda x: x.roll(1, 1) + x.rot90(1, (1, 2)),
    "circular": lambda x: functional.pad(x, (1, 2), mode="circular"),
    "reflect": lambda x: functional.pad(x, (1, 2), mode="reflect"),
    "bicubic": lambda x: functional.interpolate(x[:, None], scale_factor=1.5, mode="bicubic"),
    "cosine": lambda x: functional.cosine_similarity(x, x.flip(1), dim=-1),
    "spread": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "one hot": lambda x: functional.one_hot(x.argmax(1), 4) * x,
    "patches": lambda x: functional.unfold(x[:, None], 2, stride=2),
}


FUNCTIONS = {
    **{("writing", what): _writing(write) for what, write in WRITING.items()},
    **{("reading", what): function for what, function in READING.items()},
}
Case = tuple[str, str]


@dataclass(frozen=True)
class _Compared:
    """Values and gradients of one function at one batch size."""

    values: np.ndarray
    gradient: np.ndarray
    expected: np.ndarray
    expected_gradient: np.ndarray


def _side_by_side(cases: tuple[Case, ...]) -> Function:
    """Each function has a column `[batch, case, ...]` of the input for itself."""

    def function(x: torch.Tensor) -> torch.Tensor:
        parts = [FUNCTIONS[case](x[:, i]) for i, case in enumerate(cases)]
        return torch.cat([part.reshape(x.shape[0], -1) for part in parts], 1)

    return function


@cache
def _compared(cases: tuple[Case, ...]) -> dict[Case, list[_Compared]]:
    """Many functions in one module, for one costs nearly as much: at two batch sizes."""
    module = _Of(_side_by_side(cases))
    graph = export(module, torch.stack([X] * len(cases), 1))
    assert graph.batch == (None, None)

    @partial(jax.jit, compiler_options=QUICKLY)
    def both(inputs: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, vjp = jax.vjp(lambda x: run(graph, OPERATORS, {}, x), inputs)
        return values, vjp(cotangent)[0]

    found: dict[Case, list[_Compared]] = {case: [] for case in cases}
    for one in (X, X[:1] * 2):
        given = torch.stack([one] * len(cases), 1).requires_grad_()
        expected = module(given)
        cotangent = torch.ones_like(expected).cumsum(-1) % 7
        (gradient,) = torch.autograd.grad(expected, given, cotangent)
        values, ours = (np.asarray(x) for x in both(given.detach().numpy(), cotangent.numpy()))
        ends = np.cumsum([FUNCTIONS[case](one)[0].numel() for case in cases])[:-1]
        of_each = (np.split(x, ends, 1) for x in (values, expected.detach().numpy()))
        for i, (case, mine, theirs) in enumerate(zip(cases, *of_each, strict=True)):
            found[case].append(_Compared(mine, ours[:, i], theirs, gradient[:, i].numpy()))
    return found


def _assert_same(case: Case) -> None:
    """Values and gradients, also for another batch size."""
    neighbours = tuple(other for other in FUNCTIONS if other[0] == case[0])
    try:
        found = _compared(neighbours)[case]
    except Exception:  # of whichever: each by itself
        found = _compared((case,))[case]
    for one in found:
        np.testing.assert_allclose(one.values, one.expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.gradient, one.expected_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", WRITING)
def test_writing_in_place_is_carried_over(what: str) -> None:
    _assert_same(("writing", what))


@pytest.mark.parametrize("what", READING)
def test_views_and_parts_are_carried_over(what: str) -> None:
    _assert_same(("reading", what))


# --- what is refused


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x * self.seen


class _Named(nn.Module):
    """A scale by a parameter and a shift by a tensor of these names, beside a layer."""

    def __init__(self, scale: str, shift: str) -> None:
        super().__init__()
        self.names, self.fc = (scale, shift), nn.Linear(4, 4)
        self.register_parameter(scale, nn.Parameter(torch.full((4,), 2.0)))
        setattr(self, shift, torch.full((4,), 3.0))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = (getattr(self, name) for name in self.names)
        return self.fc(x[:, 0]) * scale + shift


@pytest.mark.parametrize("names", [("code", "graph"), ("meta", "code"), ("scale", "shift")])
def test_tensors_may_have_any_name(names: tuple[str, str]) -> None:
    module = _Named(*names)
    graph = export(module, X)
    weights = {"fc.weight", "fc.bias", names[0]}
    assert {name for _, name in graph.tensors} == weights
    assert {node.layer for node in graph.nodes if "linear" in node.operator} == {"fc"}
    assert {node.layer for node in graph.nodes if "mul" in node.operator} == {""}
    logits_fn, params = to_jax(module, X)
    found = logits_fn(params, X.numpy())
    np.testing.assert_allclose(found, module(X).detach(), atol=1e-6)


class _Frozen(nn.Module):
    """Its layer stays in evaluation mode, and none may change modes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3).eval()

    def train(self, mode: bool = True) -> "_Frozen":
        raise AssertionError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x[:, 0])


def test_no_part_changes_its_mode() -> None:
    module = _Frozen()
    export(module, X)
    assert module.training
    assert not module.fc.training


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_scripted_part_is_told() -> None:
    scripted = torch.jit.script(nn.Linear(X.shape[-1], 3)).eval()
    for module in (scripted, nn.Sequential(nn.Identity(), scripted).eval()):
        with pytest.raises(ValueError, match=r"has scripted parts \(torch\.jit\.script\)"):
            export(module, X)


BY_VALUES = "decides by the values|shapes depend on the values"
REFUSED: dict[str, tuple[Function, str]] = {
    "if": (lambda x: x if x.sum() > 0 else -x, "decides by the values"),
    "a number out of a value": (lambda x: x * x.sum().item(), BY_VALUES),
    "a mask selects": (lambda x: x[x > 0], "shapes depend on the values"),
    "masked_select": (lambda x: x.masked_select(x > 0), "shapes depend on the values"),
    "nonzero": (lambda x: x.nonzero(), "shapes depend on the values"),
    "unique": (lambda x: x.unique(), "shapes depend on the values"),
    "several": (lambda x: (x, x + 1), "returns 2 values"),
    "rand": (lambda x: x + torch.rand_like(x), "random numbers"),
    "dropout": (lambda x: functional.dropout(x, 0.5, True), "random numbers"),
    "gumbel": (lambda x: functional.gumbel_softmax(x), "random numbers"),
    "control flow": (
        lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)),
        "control flow",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_fixed_function_is_refused(what: str) -> None:
    function, told = REFUSED[what]
    with pytest.raises(ValueError, match=told):
        export(_Of(function), X)


def test_a_buffer_that_changes_is_named() -> None:
    with pytest.raises(ValueError, match=r"changes seen in a forward pass"):
        export(_Counting(), X)


@pytest.mark.parametrize(
    ("returned", "told"),
    [(lambda x: {"logits": x}, "returns a dict"), (lambda x: (x, x), "returns a tuple")],
)
def test_outputs_that_are_no_tensor_are_named(returned: Function, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        to_jax(_Of(returned), X)


def _prepared() -> nn.Module:
    layer = nn.Linear(4, 3).train()
    layer.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare_qat(nn.Sequential(layer))
    prepared(torch.randn(5, 4))
    return prepared.eval()


QUANTISED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "by a function": (
        lambda: _Of(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255)),
        "fake_quantize_per_tensor_affine",
    ),
    "to be trained": (_prepared, "FusedMovingAvgObsFakeQuantize"),
    "to int8": (
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)).eval()),
        "Linear",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", QUANTISED)
def test_a_quantised_network_is_told_as_such(what: str) -> None:
    make, named = QUANTISED[what]
    with pytest.raises(ValueError, match=rf"{named}.*no derivative.*float network"):
        to_jax(make().eval(), X[0])


def test_places_of_maxima_are_refused_by_operator_and_line() -> None:
    def unpooled(x: torch.Tensor) -> torch.Tensor:
        pooled, places = functional.max_pool2d(x[:, None], 2, return_indices=True)
        return functional.max_unpool2d(pooled, places, 2).flatten(1)

    with pytest.raises(ValueError, match=r"max_pool2d.*test_export\.py:\d+.*max_unpool"):
        to_jax(_Of(unpooled), X)


def test_missing_operators_are_named_at_once_with_module_and_line() -> None:
    stem = nn.Sequential(nn.Linear(4, 4), _Of(lambda x: torch.lgamma(x)))
    network = nn.Sequential(stem, _Of(lambda x: torch.special.i0e(x) + torch.lgamma(x))).eval()
    with pytest.raises(ValueError, match="no function in JAX") as caught:
        export(network, X)
    said = str(caught.value)
    assert "aten.lgamma.default in 0.1 (" in said
    assert "aten.special_i0e.default in 1 (" in said
    assert __file__ in said
    assert "return self.function(x)" in said or "torch.lgamma(x)" in said

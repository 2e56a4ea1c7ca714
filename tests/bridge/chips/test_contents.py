"""State that is no dense float32 tensor: in a hash, in a table's file and in a chip's."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, load_chip, predict, program, save_chip
from bridge.chips.files import fingerprint

IMAGES = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SOURCE = [
    {"image": x.permute(1, 2, 0).numpy(), "label": n % 3, "index": n} for n, x in enumerate(IMAGES)
]


class Extra(nn.Module):
    """Its state is no tensor."""

    def __init__(self, state: Any):
        super().__init__()
        self.fc, self.state = nn.Linear(48, 3), state
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.eval()

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


class Scale:
    def __init__(self, value: float):
        self.value, self.to = value, self


STATES: dict[str, tuple[Any, Any]] = {
    "dict": ({"scale": 1.0, "names": ["a", "b"]}, {"scale": 2.0, "names": ["a", "b"]}),
    "nested": ({"of": (torch.ones(2), None)}, {"of": (torch.zeros(2), None)}),
    "array": (np.arange(3), np.arange(3.0)),
    "number": (1, 2),
    "words": ({"a", "b", "c"}, {"a", "b"}),
    "object": (Scale(1.0), Scale(2.0)),
    "kind": (torch.float16, torch.bfloat16),
    "function": (len, max),
    "list": ([[1], [2]], [[1, 2]]),
}


@pytest.mark.parametrize("kind", STATES)
def test_state_that_is_no_tensor(kind: str, tmp_path: Path) -> None:
    one, other = (Extra(state) for state in STATES[kind])
    assert fingerprint(one) == fingerprint(Extra(deepcopy(STATES[kind][0]))) != fingerprint(other)
    out = tmp_path / "digital.parquet"
    table = predict(one, SOURCE, out=out)
    assert predict(one, SOURCE, out=out).equals(table)
    with pytest.raises(ValueError, match="the weights or the chip are others"):
        predict(other, SOURCE, out=out)
    chip = program(one, PROFILES["pcm"], seed=0)
    save_chip(tmp_path / "chip.safetensors", chip)
    back = load_chip(tmp_path / "chip.safetensors", Extra(STATES[kind][0]))
    assert fingerprint(back) == fingerprint(chip)
    assert fingerprint(program(other, PROFILES["pcm"], seed=0)) != fingerprint(chip)
    out = tmp_path / "chip.parquet"
    table = predict(chip, SOURCE, out=out)
    assert predict(back, SOURCE, out=out).equals(table)


def test_a_hash_is_the_same_in_another_process() -> None:
    code = (
        "from tests.bridge.chips.test_contents import *\n"
        "for one, _ in STATES.values(): print(fingerprint(Extra(one)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [fingerprint(Extra(one)) for one, _ in STATES.values()]


class Buffered(nn.Module):
    """A tensor of some dtype and layout, used in the forward pass."""

    def __init__(self, tensor: torch.Tensor, use: Callable[..., torch.Tensor], kept: bool = True):
        super().__init__()
        self.fc, self.use = nn.Linear(48, 3), use
        self.register_buffer("own", tensor, persistent=kept)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.use(x.flatten(1), self.own))


def turned(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.reshape(len(x), 24, 2))
    return torch.view_as_real(pairs * by).flatten(1).to(x.dtype)


def spread(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return (by @ x.T).T


def scaled(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return x * by.to(x.dtype)


def rotation() -> torch.Tensor:
    return torch.polar(torch.ones(24), torch.arange(24.0))


def adjacency() -> torch.Tensor:
    return torch.eye(48) + torch.eye(48).roll(5, 0) / 2


TENSORS: dict[str, Callable[[], nn.Module]] = {
    "complex64": lambda: Buffered(rotation(), turned),
    "complex128": lambda: Buffered(rotation().to(torch.complex128), turned),
    "conjugate": lambda: Buffered(rotation().conj(), turned),
    "coo": lambda: Buffered(adjacency().to_sparse(), spread),
    "float64, not kept": lambda: Buffered(torch.linspace(0, 1, 48).double(), scaled, False),
    "bfloat16, not kept": lambda: Buffered(torch.linspace(0, 1, 48).bfloat16(), scaled, False),
    "uint16": lambda: Buffered(torch.arange(48).to(torch.uint16), scaled),
    "number": lambda: Buffered(torch.tensor(2.0), scaled),
    "nothing": lambda: Buffered(torch.empty(0, dtype=torch.complex64), lambda x, _: x),
}


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.filterwarnings("ignore:the network multiplies with own:UserWarning")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_other_dtypes_and_layouts(kind: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TENSORS[kind]()
        other = TENSORS[kind]()
    table = predict(model, SOURCE, out=tmp_path / "out.parquet")
    assert predict(model, SOURCE, out=tmp_path / "out.parquet").equals(table)
    assert fingerprint(deepcopy(model)) == fingerprint(model) != fingerprint(other)
    chip = program(model, PROFILES["pcm"], seed=0)
    chip(IMAGES, range(5))
    path = tmp_path / "chip.safetensors"
    save_chip(path, chip)
    kept = deepcopy(other)
    kept.own = other.own * 3 if other.own.is_floating_point() else other.own
    back = load_chip(path, kept)
    assert torch.equal(back(IMAGES, range(5)), chip(IMAGES, range(5)))
    assert (back.analog.own.dtype, back.analog.own.layout) == (model.own.dtype, model.own.layout)
    assert fingerprint(back) == fingerprint(chip)
    plain = Buffered(torch.ones(48), lambda x, _: x)
    if kind != "number":
        with pytest.raises(ValueError, match=r"of another network: .*own"):
            load_chip(path, plain)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("how", ["csr", "csc", "bsr"])
def test_compressed_tensors(how: str, tmp_path: Path) -> None:
    """PyTorch does not copy them, so that a chip cannot have them."""
    blocks = [(4, 4)] if how == "bsr" else []
    model = Buffered(getattr(adjacency(), f"to_sparse_{how}")(*blocks), spread)
    table = predict(model, SOURCE, out=tmp_path / "out.parquet")
    assert predict(model, SOURCE, out=tmp_path / "out.parquet").equals(table)
    before = fingerprint(model)
    model.own = getattr(2 * adjacency(), f"to_sparse_{how}")(*blocks)
    assert fingerprint(model) != before
    with pytest.raises(ValueError, match=r"_buffers of the model.* cannot be copied"):
        program(model, PROFILES["pcm"], seed=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_that_cast_within(dtype: torch.dtype, tmp_path: Path) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(48, 3).to(dtype)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1).to(dtype)).float()

    model = Cast()
    table = predict(model, SOURCE, out=tmp_path / "out.parquet")
    assert predict(deepcopy(model), SOURCE, out=tmp_path / "out.parquet").equals(table)
    with pytest.raises(ValueError, match="the weights or the chip are others"):
        predict(Cast(), SOURCE, out=tmp_path / "out.parquet")


def test_what_cannot_be_hashed_is_named(tmp_path: Path) -> None:
    model = Buffered(torch.empty(3, device="meta"), lambda x, _: x)
    with pytest.raises(ValueError, match=r"own of the network, torch.float32 \(3,\) on meta"):
        predict(model, SOURCE, out=tmp_path / "out.parquet")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_quantised_tensors_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    tables = torch.quantize_per_tensor(torch.rand(48), 0.1, 0, torch.qint8)
    model = Buffered(tables, lambda x, own: x * own.dequantize())
    chip = program(model, PROFILES["pcm"], seed=0)
    assert chip(IMAGES, range(5)).isfinite().all()
    assert fingerprint(chip) != fingerprint(program(model, PROFILES["pcm"], seed=1))
    message = r"own of the network is a quantised \(torch.qint8\) tensor.*tensor\.dequantize"
    with pytest.raises(ValueError, match=message):
        save_chip(path, chip)
    assert not path.exists()
    plain = Buffered(torch.ones(48), lambda x, own: x * own)
    save_chip(path, program(plain, PROFILES["pcm"], seed=0))
    with pytest.raises(ValueError, match=message):
        load_chip(path, model)

"""The table of a network's products: their arithmetic, their tiles, and what is digital and why."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bridge import coverage, program
from bridge.chips.profiles import PROFILES
from bridge.chips.tiles import named_layers, named_tiles
from bridge.weights.resnet import BasicBlock, Bottleneck, ResNet
from tests.torch_networks import Words, made, randomised


def one(layers: nn.Module, *shape: int):
    return coverage(layers.eval(), np.ones((2, *shape), np.float32)).set_index("layer")


def test_multiply_accumulates_are_those_of_the_definition():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    up = nn.ConvTranspose2d(6, 5, 2, stride=2)
    layers = nn.Sequential(conv, up, nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    table = one(layers, 8, 8, 4)
    assert table["macs"].to_dict() == {
        "0": 6 * 4 * 4 * 2 * 9,
        "1": 6 * 4 * 4 * 5 * 4,
        "3": 5 * 8 * 8 * 7,
    }
    assert table["place"].to_dict() == {"0": "digital", "1": "digital", "3": "analog"}
    assert table["reason"].to_dict() == {"0": "grouped", "1": "transposed", "3": ""}


@pytest.mark.parametrize("name", ["MobileNetV3", "TransformerEncoder", "keyword spotting"])
def test_every_product_is_there_and_tiles_are_the_chip_s(name):
    model, shape = made(name)
    x = torch.randn(2, *shape)
    table = coverage(model, x)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(x)
    torch.backends.mha.set_fastpath_enabled(fast)
    assert 2 * 2 * table["macs"].sum() == counter.get_total_flops()
    chip = program(model, PROFILES["ideal"], seed=0)
    assert set(table.loc[table["place"] == "analog", "layer"]) == set(named_layers(chip.analog))
    assert table["tiles"].sum() == len(named_tiles(chip.analog))


def test_large_layers_take_several_tiles():
    table = one(nn.Sequential(nn.Linear(1025, 513), nn.Linear(513, 2)), 1025)
    assert table["tiles"].to_dict() == {"0": 3 * 2, "1": 2}
    chip = program(nn.Sequential(nn.Linear(1025, 513)).eval(), PROFILES["ideal"], seed=0)
    assert len(named_tiles(chip.analog)) == 6


class Beside(nn.Module):
    """A weight used outside of its layer, a packed product of two activations, a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
        self.twice = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(x))
        x = F.linear(x, self.fc.weight)
        return self.out(x @ (x.mT @ x))


def test_products_outside_of_layers_are_there():
    table = coverage(Beside().eval(), np.ones((2, 3, 4), np.float32))
    rows = {(row.weights, row.operator): row for row in table.itertuples()}
    assert rows["fc.weight", "linear"].place == "digital"
    assert "program refuses" in rows["fc.weight", "linear"].reason
    assert rows["", "matmul"].reason == "two activations"
    assert rows["", "matmul"].macs == 3 * 4 * 4 * 2
    assert rows["twice.weight", "linear"].calls == 2
    assert rows["twice.weight", "linear"].macs == 2 * 3 * 4 * 4
    assert rows["out.weight", "linear"].place == "analog"


class Dynamic(nn.Module):
    """A weight for each sample: gated, as a convolution in groups, and scaled once more."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(4, 4), nn.Linear(8, 2)
        self.w = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.w * self.gate(x).sigmoid()[:, None]
        size = torch.rsqrt(weight.pow(2).sum(2, keepdim=True) + 1e-6)
        weight = weight * size.expand(-1, -1, 4)
        return self.out(
            F.conv1d(x.reshape(1, -1, 1), weight.view(-1, 4, 1), groups=len(x)).view(-1, 8)
        )


def test_weights_that_the_input_scales_are_named():
    table = coverage(Dynamic().eval(), np.ones((2, 4), np.float32)).set_index("layer")
    row = table.loc[""]
    assert (row["weights"], row["macs"], row["tiles"]) == ("w", 8 * 4, 0)
    assert row["reason"] == "weights that the input scales, which program refuses"
    assert set(table.loc[["gate", "out"], "place"]) == {"analog"}
    named = coverage(Dynamic().eval(), np.ones((2, 4), np.float32), digital_layers=["w"])
    assert named.set_index("layer").loc["", "reason"] == "named in digital_layers"


class Fourier(nn.Module):
    """A filter by complex weights, and a product with such for each frequency."""

    def __init__(self, mixing: bool) -> None:
        super().__init__()
        self.fc, self.mixing = nn.Linear(4, 4), mixing
        self.w = nn.Parameter(torch.randn(3, *([4, 4] if mixing else []), dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.fft.rfft(self.fc(x.transpose(1, 2)), dim=1, n=4)[..., None]
        found = torch.einsum("nfio,fij->nfjo", found, self.w) if self.mixing else found
        found = found if self.mixing else found * self.w[:, None, None]
        return torch.fft.irfft(found[..., 0], dim=1, n=4).mean(1)


@pytest.mark.parametrize(
    ("mixing", "macs", "reason"),
    [
        (False, 3 * 4, "a filter of complex values"),
        (True, 3 * 4 * 4, "weights outside of their layer, which program refuses"),
    ],
)
def test_complex_weights_are_named(mixing: bool, macs: int, reason: str) -> None:
    x = torch.randn(2, 4, 4)
    row = coverage(Fourier(mixing).eval(), x).set_index("layer").loc[""]
    assert (row["weights"], row["macs"], row["reason"]) == ("w", macs, reason)
    named = coverage(Fourier(mixing).eval(), x, digital_layers=["w"]).set_index("layer")
    assert named.loc["", "reason"] == "named in digital_layers"


class Turned(nn.Module):
    """Fixed phases, as those of rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.fc(x)) * self.phase, n=4).mean(1)


def test_complex_buffers_are_no_products() -> None:
    assert coverage(Turned().eval(), torch.randn(2, 4, 4))["layer"].tolist() == ["fc"]


class Experts(nn.Module):
    """Each image picks two of four weights, whose mean it is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(4, 4), nn.Linear(8, 2)
        self.w = nn.Parameter(torch.randn(4, 8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picked = self.w[self.router(x).topk(2).indices].mean(1)
        return self.out(torch.einsum("noi,ni->no", picked, x))


def test_weights_that_the_input_picks_are_named():
    model, images = Experts().eval(), np.ones((2, 4), np.float32)
    row = coverage(model, images).set_index("layer").loc[""]
    assert (row["weights"], row["macs"], row["tiles"]) == ("w", 8 * 4, 0)
    assert (row["place"], row["reason"]) == ("digital", "weights that the input picks")
    row = coverage(model, images, digital_layers=["w"]).set_index("layer").loc[""]
    assert row["reason"] == "named in digital_layers"


def test_rows_that_token_ids_name_are_activations():
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(9, 16), nn.Linear(16, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            rows = self.table(ids)
            return self.fc(((rows @ rows.mT).softmax(-1) @ rows).mean(1))

    table = coverage(Bag().eval(), torch.arange(30).view(5, 6) % 9).set_index("layer")
    assert set(table.loc[[""], "reason"]) == {"two activations"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_product_with_a_buffer_is_one_with_a_fixed_matrix(dtype):
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.register_buffer("kept", torch.ones(4, 4).to(dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x @ (0.1 * self.kept.float()))

    table = coverage(Kept().eval(), np.ones((2, 4), np.float32)).set_index("layer")
    assert table.loc["", "place"] == "digital"
    assert table.loc["", "reason"] == "a fixed matrix: buffers or constants, no parameters"
    assert table.loc["", "macs"] == 16
    assert table.loc["fc", "place"] == "analog"


class Hooked(nn.Module):
    """A hook of one layer multiplies with the weight of another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.out.register_forward_hook(self.more)

    def more(self, layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return F.linear(output, self.fc.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(x))


def test_a_product_in_a_layer_with_another_s_weight_is_not_the_layer_s():
    table = coverage(Hooked().eval(), np.ones((2, 4), np.float32))
    places = table.groupby(["layer", "weights"])["place"].first().to_dict()
    assert places.pop(("fc", "fc.weight")) == "analog"
    assert places.pop(("out", "out.weight")) == "analog"
    assert list(places.values()) == ["digital"]


def test_recurrent_layers_and_tied_weights():
    table = coverage(randomised(Words()), np.zeros((2, 4), int)).set_index("layer")
    assert set(table.loc["gru", "reason"]) == {"recurrent"}
    head = table.loc["head"]
    assert (head["weights"], head["place"]) == ("embedding.weight", "analog")


def test_what_is_named_is_digital():
    model, _ = made("VGG")
    images = np.zeros((2, 16, 16, 3), np.float32)
    table = coverage(model, images, digital_layers=["classifier"]).set_index("layer")
    assert table.loc["classifier.0", "reason"] == "named in digital_layers"
    assert table.loc["features.0", "place"] == "analog"


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_all_products_of_our_resnets_are_analog(block):
    """What a run of a preset takes for granted: `simulate` makes a table of others alone."""
    network = ResNet(block, (1, 1, 1, 1), 5, "cifar", 2, 3).eval()
    table = coverage(network, np.zeros((2, 8, 8, 3), np.float32))
    assert set(table["place"]) == {"analog"}
    assert len(table) == len(named_layers(program(network, PROFILES["ideal"], seed=0).analog))


def test_a_network_on_tiles_is_refused():
    chip = program(nn.Sequential(nn.Linear(4, 2)).eval(), PROFILES["ideal"], seed=0)
    with pytest.raises(ValueError, match="on tiles already"):
        coverage(chip.analog, np.zeros((2, 4), np.float32))


class Queries(nn.Module):
    """Learned queries that go through layers, for each sample or once for all, and a weight that a
    layer makes of a latent."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.queries, self.latent = (nn.Parameter(torch.randn(n)) for n in ((1, 3, 4), (5, 2)))
        self.q, self.k, self.out, self.made = (nn.Linear(n, 4) for n in (4, 4, 4, 2))
        self.each = each

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.queries.expand(len(x), -1, -1) if self.each else self.queries
        found = self.q(queries).expand(len(x), -1, -1)
        found = F.scaled_dot_product_attention(found, self.k(x), x)
        return F.linear(self.out(found.mean(1)), self.made(self.latent))


@pytest.mark.parametrize("each", [True, False])
def test_layers_of_learned_queries_are_there(each):
    model, x = Queries(each).eval(), torch.randn(4, 6, 4)
    table = coverage(model, x)
    chip = program(model, PROFILES["ideal"], seed=0, strict=True)
    chip(x, range(4))
    assert set(table.loc[table["place"] == "analog", "layer"]) == set(named_layers(chip.analog))
    assert set(table["reason"]) == {"", "two activations"}
    macs = table.set_index("layer")["macs"]
    # Once for all or for each sample: one sample takes as many.
    assert (macs["q"], macs["k"], macs["out"], macs["made"]) == (3 * 16, 6 * 16, 16, 5 * 8)
    assert sorted(macs[""]) == [4 * 5, 3 * 6 * 8]
    digital = coverage(model, x, digital_layers=["q"]).set_index("layer")
    assert "q" not in digital.index or digital.loc["q", "place"] == "digital"

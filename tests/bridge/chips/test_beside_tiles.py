"""Products with parameters that no tile holds: in inference mode, sparse, and of other kinds."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bridge import PROFILES, program
from bridge.chips import telling
from tests.bridge.chips.test_examination import ALLOWED, BESIDE, TENSOR, Parts

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


def features(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.conv(x).relu().flatten(1)


def small(net: Any, x: torch.Tensor) -> torch.Tensor:
    return features(net, x)[:, :8]


OTHERS: dict[str, tuple[Forward, str]] = {
    "cosine": (
        lambda n, x: F.cosine_similarity(features(n, x)[:, None], n.w[None, :4], dim=-1),
        "w",
    ),
    "cosine, by a module": (
        lambda n, x: nn.CosineSimilarity(-1)(n.w[None, :4], features(n, x)[:, None]),
        "w",
    ),
    "tensordot": (lambda n, x: n.fc(torch.tensordot(features(n, x), n.w, 1)), "w"),
    "bilinear": (
        lambda n, x: F.bilinear(small(n, x), small(n, x), n.w[:4].view(4, 8, 16)[..., :8]),
        "w",
    ),
    "several": (lambda n, x: n.fc(torch.linalg.multi_dot([features(n, x), n.w, n.w])), "w"),
    "vecdot": (lambda n, x: torch.linalg.vecdot(features(n, x)[:, None], n.w[None, :4]), "w"),
    "distances": (lambda n, x: torch.cdist(features(n, x), n.w[:4]), "w"),
    "time, batch, channel": (
        lambda n, x: n.fc(torch.conv_tbc(features(n, x)[None], n.w[None], n.scale)[0]),
        "w",
    ),
    "transposed": (
        lambda n, x: n.fc(F.conv_transpose1d(features(n, x)[..., None], n.w[..., None])[..., 0]),
        "w",
    ),
    "solved": (
        lambda n, x: n.fc(torch.linalg.solve(n.w + torch.eye(128), features(n, x).T).T),
        "w",
    ),
    "solved for a triangle": (
        lambda n, x: n.fc(
            torch.linalg.solve_triangular(
                (n.w + 3 * torch.eye(128)).tril(), features(n, x).T, upper=False
            ).T
        ),
        "w",
    ),
    "reflections": (
        lambda n, x: n.fc(torch.ormqr(torch.linalg.qr(n.w)[0], n.scale, features(n, x).T).T),
        "w",
    ),
    "a sparse input": (
        lambda n, x: n.fc(torch.sparse.mm(features(n, x).to_sparse(), n.w)),
        "w",
    ),
    "a sparse weight": (
        lambda n, x: n.fc(torch.sparse.mm(n.w.to_sparse(), features(n, x).T).T),
        "w",
    ),
    "compressed rows": (
        lambda n, x: n.fc((n.w.to_sparse_csr() @ features(n, x).T).T),
        "w",
    ),
    "weighed rows of a table": (
        lambda n, x: n.fc(
            F.embedding_bag(
                torch.arange(4).repeat(len(x), 1),
                n.table.weight,
                mode="sum",
                per_sample_weights=features(n, x)[:, :4].contiguous(),
            )
        ),
        r"table\.weight",
    ),
    "the layer's weights besides": (
        lambda n, x: (
            n.fc(features(n, x)) + F.conv2d(x, n.conv.weight, dilation=2).mean((2, 3))[:, :4]
        ),
        r"conv\.weight",
    ),
}


class InInferenceMode(Parts):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class WithinInferenceMode(Parts):
    """Encodes without gradients, and computes its logits so too."""

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode(x) * 1.0


KINDS = [Parts, InInferenceMode, WithinInferenceMode]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", {**OTHERS, **BESIDE})
def test_products_beside_tiles_are_seen(name: str, kind: type[Parts]) -> None:
    how, weight = {**OTHERS, **BESIDE}[name]
    chip = program(kind(how), PROFILES["wnoise"], seed=0, digital_layers=["table"])
    message = rf"the network multiplies with .*{weight}.* outside of a layer on tiles"
    with pytest.raises(ValueError, match=message):
        chip.examine(TENSOR)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", ALLOWED)
def test_honest_networks_in_inference_mode_are_taken(name: str, kind: type[Parts]) -> None:
    chip = program(kind(ALLOWED[name]), PROFILES["wnoise"], seed=0, digital_layers=["table"])
    chip.examine(TENSOR)


GATES: dict[str, Forward] = {
    "scaled rows at an index": lambda n, x: n.fc(
        torch.zeros(len(x), 1, 128).index_add(
            1, torch.zeros(4).long(), features(n, x)[:, None].repeat(1, 4, 1) * n.scale
        )[:, 0]
    ),
    "mean": lambda n, x: n.fc((features(n, x)[:, None] * n.w[:4]).mean(1)),
    "sum of an expanded view": lambda n, x: n.fc(
        (features(n, x)[:, None].expand(-1, 4, -1) * n.w[:4]).sum(-2)
    ),
    "masked": lambda n, x: n.fc(
        (features(n, x)[:, None] * n.w[:4]).masked_fill(n.w[:4] > 1, 0).double().mean(1).float()
    ),
    "one for each class": lambda n, x: (n.fc(features(n, x))[..., None] * n.w[:4]).mean(-1),
}


@pytest.mark.parametrize("name", GATES)
def test_sums_of_parameters_alone_are_scales(name: str) -> None:
    chip = program(Parts(GATES[name]), PROFILES["wnoise"], seed=0, digital_layers=["table"])
    chip.examine(TENSOR)


SUMS: dict[str, Forward] = {
    "both": lambda n, x: n.fc(
        features(n, x) + (features(n, x)[:, None] * n.w).mean((1, 2))[:, None]
    ),
    "all": lambda n, x: n.fc(features(n, x)) + (features(n, x)[:, None] * n.w).sum((1, 2))[:, None],
    "turned": lambda n, x: n.fc((features(n, x)[:, None] * n.w).mT.sum(1)),
    "from the left": lambda n, x: n.fc((n.w * features(n, x)[:, None]).mean(-1)),
    "the last of running sums": lambda n, x: n.fc(
        (n.w * features(n, x)[:, None]).cumsum(-1)[..., -1]
    ),
    "a pool of all": lambda n, x: n.fc(F.avg_pool1d(n.w * features(n, x)[:, None], 128)[..., 0]),
    "an adaptive pool": lambda n, x: n.fc(
        F.adaptive_avg_pool2d((n.w * features(n, x)[:, None])[:, None], (128, 1)).flatten(1)
    ),
    "added up at an index": lambda n, x: n.fc(
        torch.zeros(len(x), 128, 2).index_add(
            2, torch.arange(128) // 64, n.w * features(n, x)[:, None]
        )[..., 0]
    ),
    "sparse weights": lambda n, x: n.fc(
        torch.zeros(len(x), 128).index_add(
            1, torch.arange(64) * 2, features(n, x)[:, torch.arange(64)] * n.w[0, :64]
        )
    ),
    "sparse weights, scattered": lambda n, x: n.fc(
        torch.zeros(len(x), 128).scatter_add(
            1,
            (torch.arange(64) * 2).expand(len(x), -1),
            features(n, x)[:, torch.arange(64)] * n.w[0, :64],
        )
    ),
    "summed as another type": lambda n, x: n.fc(
        (n.w * features(n, x)[:, None]).double().sum(-1).float()
    ),
    "masked": lambda n, x: n.fc(
        (n.w * features(n, x)[:, None]).masked_fill(torch.eye(128) > 0, 0).sum(-1)
    ),
    "chosen": lambda n, x: n.fc(
        torch.where(torch.eye(128) > 0, 0.0, n.w * features(n, x)[:, None]).sum(-1)
    ),
    "scattered": lambda n, x: n.fc(
        torch.zeros(len(x), 128, 2).scatter_add(
            2, (torch.arange(128) // 64).expand(len(x), 128, -1), n.w * features(n, x)[:, None]
        )[..., 0]
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_features_are_products(name: str) -> None:
    chip = program(Parts(SUMS[name]), PROFILES["wnoise"], seed=0, digital_layers=["table"])
    with pytest.raises(ValueError, match="multiplies with w outside of a layer"):
        chip.examine(TENSOR)


def test_rows_of_a_table_are_no_product() -> None:
    def looked_up(n: Any, x: torch.Tensor) -> torch.Tensor:
        ids = (x.flatten(1)[:, :4] > 0).long()
        return n.fc(features(n, x) + F.embedding_bag(ids, n.table.weight, mode="sum"))

    program(Parts(looked_up), PROFILES["wnoise"], seed=0, digital_layers=["table"]).examine(TENSOR)


def expanded(n: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = features(n, x)
    return h[:, None].expand(-1, 4, -1), n.w[:4][None].expand(len(h), -1, -1)


def difference(n: Any, x: torch.Tensor) -> torch.Tensor:
    h, w = expanded(n, x)
    return h - w


DISTANCES: dict[str, Forward] = {
    "pow": lambda n, x: n.fc.bias - torch.pow(difference(n, x), 2).sum(2),
    "square": lambda n, x: -difference(n, x).square().sum(-1),
    "a product with itself": lambda n, x: -(lambda d: (d * d).mean(2))(difference(n, x)),
    "broadcast, from the other side": lambda n, x: (
        -((n.w[:4] - features(n, x)[:, None]) ** 2).sum(2)
    ),
    "norm": lambda n, x: -difference(n, x).norm(dim=-1),
    "linalg": lambda n, x: -torch.linalg.vector_norm(difference(n, x), dim=-1),
    "pairwise": lambda n, x: -F.pairwise_distance(features(n, x)[:, None], n.w[None, :4]),
    "absolute": lambda n, x: -difference(n, x).abs().sum(-1),
    "scaled": lambda n, x: (-0.5 * (difference(n, x) / n.scale) ** 2).sum(-1),
    "clusters": lambda n, x: 1 / (1 + (difference(n, x) ** 2).sum(2)),
    "turned": lambda n, x: -(difference(n, x).mT ** 2).sum(1),
}
NO_DISTANCES: dict[str, Forward] = {
    "positions and a norm": lambda n, x: n.fc(
        (
            (lambda t: t / (t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())(
                features(n, x)[:, None] + n.w[:4]
            )
        ).mean(1)
    ),
    "centred and normalised": lambda n, x: n.fc(
        F.normalize((features(n, x) - n.scale) ** 2, dim=-1)
    ),
    "smearing": lambda n, x: n.fc(
        torch.exp(-((features(n, x)[..., None] - n.scale[:6]) ** 2)).mean(-1)
    ),
    "smearing, summed as it is": lambda n, x: n.fc(
        ((features(n, x)[..., None] - n.scale[:6]) ** 2).mean(-1)
    ),
    "a squared loss": lambda n, x: (
        n.fc(features(n, x)) + ((features(n, x) - n.scale) ** 2).mean(-1, keepdim=True)
    ),
    "differences of features": lambda n, x: n.fc(
        (features(n, x)[:, :, None] - features(n, x)[:, None]).pow(2).sum(-1)
    ),
    "layer scale": lambda n, x: n.fc((features(n, x) * n.scale) ** 2),
    "graph attention": lambda n, x: n.fc(
        F.leaky_relu(
            features(n, x)[:, :, None] * n.scale[0] + features(n, x)[:, None] * n.scale[1]
        ).sum(-1)
    ),
    "residuals to centres": lambda n, x: n.fc(difference(n, x).sum(1)),
}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", DISTANCES)
def test_distances_that_are_written_out_are_told(name: str, kind: type[Parts]) -> None:
    telling.warn_once.cache_clear()
    model = kind(DISTANCES[name])
    with pytest.warns(UserWarning, match=r"takes distances to w, .*digital_layers=\['w'\]"):
        program(model, PROFILES["wnoise"], seed=0, digital_layers=["table", "fc"]).examine(TENSOR)
    with pytest.raises(ValueError, match=r"takes distances to w, .* leave strict out"):
        program(
            model, PROFILES["wnoise"], seed=0, digital_layers=["table", "fc"], strict=True
        ).examine(TENSOR)
    program(
        model, PROFILES["wnoise"], seed=0, digital_layers=["table", "fc", "w"], strict=True
    ).examine(TENSOR)


def spectrum(n: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft(features(n, x))


def filtered(n: Any, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return n.fc(torch.fft.irfft(spectrum(n, x) * by, n=128))


FILTERS: dict[str, Forward] = {
    "real and imaginary parts": lambda n, x: filtered(
        n, x, torch.view_as_complex(n.w[:65, :2].contiguous())
    ),
    "a real filter": lambda n, x: filtered(n, x, n.w[0, :65]),
    "a kernel's transform": lambda n, x: filtered(n, x, torch.fft.rfft(n.w[0])),
    "in place": lambda n, x: n.fc(
        torch.fft.irfft(spectrum(n, x).mul_(torch.fft.rfft(n.w[0])), n=128)
    ),
}


def parts_filtered(n: Any, x: torch.Tensor) -> torch.Tensor:
    real, imaginary, (a, b) = spectrum(n, x).real, spectrum(n, x).imag, n.w[:2, :65]
    found = torch.complex(real * a - imaginary * b, imaginary * a + real * b)
    return n.fc(torch.fft.irfft(found, n=128))


def sizes_filtered(n: Any, x: torch.Tensor) -> torch.Tensor:
    z = spectrum(n, x)
    return n.fc(torch.fft.irfft(torch.polar(z.abs() * n.w[0, :65], z.angle()), n=128))


def part_filtered_in_place(n: Any, x: torch.Tensor) -> torch.Tensor:
    z = spectrum(n, x)
    z.real.mul_(n.w[0, :65])
    return n.fc(torch.fft.irfft(z, n=128))


FILTERS |= {
    "each part apart": parts_filtered,
    "a part in place": part_filtered_in_place,
    "sizes": sizes_filtered,
    "a quotient": lambda n, x: n.fc(torch.fft.irfft(spectrum(n, x) / (n.w[0, :65] + 2), n=128)),
    "added to itself": lambda n, x: n.fc(
        torch.fft.irfft(
            torch.addcmul(spectrum(n, x), spectrum(n, x), torch.fft.rfft(n.w[0])[None]), n=128
        )
    ),
}


def mixed(n: Any, x: torch.Tensor) -> torch.Tensor:
    """Two of FNet's layers, each with LayerScale."""
    h = features(n, x)
    for gamma in n.w[:2]:
        h = h + gamma * torch.fft.fft(h).real
    return n.fc(h)


NO_FILTERS: dict[str, Forward] = {
    "scales of parts that stay parts": mixed,
    "a scaled power spectrum": lambda n, x: n.fc(torch.fft.fft(features(n, x)).abs() * n.w[0]),
    "a scale of mixed tokens": lambda n, x: n.fc(
        (features(n, x) + torch.fft.fft(features(n, x)).real) * n.w[0]
    ),
    "one number for all": lambda n, x: filtered(n, x, n.w[0, :1]),
    "a spectrum of two images' features": lambda n, x: filtered(n, x, spectrum(n, x)),
    "scales": lambda n, x: n.fc(features(n, x) * n.w[0]),
}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_in_the_fourier_domain_are_told(name: str, kind: type[Parts]) -> None:
    telling.warn_once.cache_clear()
    model, digital = kind(FILTERS[name]), ["table", "fc"]
    with pytest.warns(UserWarning, match=r"complex features by w, .*digital_layers=\['w'\]"):
        program(model, PROFILES["wnoise"], seed=0, digital_layers=digital).examine(TENSOR)
    settings: dict[str, Any] = {"seed": 0, "strict": True}
    with pytest.raises(ValueError, match=r"complex features by w, .* leave strict out"):
        program(model, PROFILES["wnoise"], digital_layers=digital, **settings).examine(TENSOR)
    program(model, PROFILES["wnoise"], digital_layers=[*digital, "w"], **settings).examine(TENSOR)


@pytest.mark.parametrize("name", NO_FILTERS)
def test_what_is_no_filter_is_not_told(name: str) -> None:
    model = KINDS[0](NO_FILTERS[name])
    program(model, PROFILES["wnoise"], seed=0, digital_layers=["table", "fc"], strict=True).examine(
        TENSOR
    )


@pytest.mark.parametrize("name", NO_DISTANCES)
def test_what_is_no_distance_is_not_told(name: str) -> None:
    chip = program(
        Parts(NO_DISTANCES[name]), PROFILES["wnoise"], seed=0, digital_layers=["table"], strict=True
    )
    chip.examine(TENSOR)


def gate(n: Any, x: torch.Tensor) -> torch.Tensor:
    return n.fc(features(n, x)).sigmoid().repeat(1, 32)


def applied(weight: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Each sample's own weight `[batch, out, in]` times its features."""
    return torch.bmm(weight, h[..., None])[..., 0]


def modulated(n: Any, x: torch.Tensor, upsampled: bool = False) -> torch.Tensor:
    """StyleGAN2's convolution: scaled by the input, demodulated, a group for each sample."""
    h, batch = n.conv(x).relu(), len(x)
    weight = 0.1 * n.w[:, :72].reshape(1, 128, 8, 3, 3) * h.mean((2, 3)).view(batch, 1, 8, 1, 1)
    weight = weight * (weight.pow(2).sum([2, 3, 4]) + 1e-8).rsqrt().view(batch, -1, 1, 1, 1)
    rows = h.reshape(1, -1, *h.shape[2:])
    if upsampled:
        turned = weight.transpose(1, 2).reshape(batch * 8, 128, 3, 3)
        out = F.conv_transpose2d(rows, turned, groups=batch)
    else:
        out = F.conv2d(rows, weight.view(-1, 8, 3, 3), groups=batch)
    return n.fc(out.view(batch, 128, -1).mean(2))


def omni_dimensional(n: Any, x: torch.Tensor) -> torch.Tensor:
    """ODConv of one kernel: attention over its places, its inputs and its outputs."""
    batch = len(x)
    places = x.mean((1, 2))[:, :1].sigmoid().view(batch, 1, 1, 1, 1, 1).expand(-1, 1, 1, 1, 3, 3)
    weight = (places * n.kernel[None, None]).sum(1).view(-1, 3, 3, 3)
    rows = (x * x.mean((2, 3), keepdim=True).sigmoid()).reshape(1, -1, 6, 6)
    return n.fc(features(n, x) + F.conv2d(rows, weight, groups=batch).view(batch, 128))


def one_by_one(n: Any, x: torch.Tensor) -> torch.Tensor:
    h = features(n, x)
    weights = n.w * gate(n, x)[:, None]
    return n.fc(torch.cat([F.linear(h[i : i + 1], weights[i]) for i in range(len(x))]))


def in_place(n: Any, x: torch.Tensor) -> torch.Tensor:
    weight = n.w.expand(len(x), -1, -1).clone()
    weight *= gate(n, x)[:, None]
    return n.fc(applied(weight, features(n, x)))


def scaled_keys(n: Any, x: torch.Tensor) -> torch.Tensor:
    h = features(n, x)
    keys = n.w[:6] * n.fc(h).mean(1)[:, None, None]
    return n.fc(F.scaled_dot_product_attention(h[:, None], keys, keys)[:, 0])


SCALED: dict[str, tuple[Forward, str]] = {
    "gated": (
        lambda n, x: n.fc(applied(n.w * gate(n, x)[:, None], features(n, x))),
        "w",
    ),
    "gated from both sides": (
        lambda n, x: n.fc(
            applied(n.w * gate(n, x)[:, None] * gate(n, x)[:, :, None], features(n, x))
        ),
        "w",
    ),
    "einsum": (
        lambda n, x: n.fc(
            torch.einsum("noi,ni->no", torch.einsum("oi,ni->noi", n.w, gate(n, x)), features(n, x))
        ),
        "w",
    ),
    "normalised": (
        lambda n, x: n.fc(
            applied(F.normalize(n.w * gate(n, x)[:, None] + n.listed[0], dim=2), features(n, x))
        ),
        "w",
    ),
    "a sum written out, divided": (
        lambda n, x: n.fc((n.w / (1 + gate(n, x)[:, None]) * features(n, x)[:, None] / 2).sum(2)),
        "w",
    ),
    "a row of numbers": (
        lambda n, x: n.fc(
            applied(
                (n.w.flatten() * n.fc(features(n, x))[:, :1].exp()).view(-1, 128, 128),
                features(n, x),
            )
        ),
        "w",
    ),
    "a sum written out": (
        lambda n, x: n.fc((n.w * gate(n, x)[:, None] * features(n, x)[:, None]).sum(2)),
        "w",
    ),
    "a sum written out, by each output": (
        lambda n, x: n.fc((n.w * gate(n, x)[..., None] * features(n, x)[:, None]).sum(2)),
        "w",
    ),
    "modulated": (modulated, "w"),
    "modulated, upsampled": (lambda n, x: modulated(n, x, upsampled=True), "w"),
    "omni-dimensional": (omni_dimensional, "kernel"),
    "one by one": (one_by_one, "w"),
    "in place": (in_place, "w"),
    "scaled keys": (scaled_keys, "w"),
}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", SCALED)
def test_weights_that_the_input_scales_are_weights(name: str, kind: type[Parts]) -> None:
    how, weight = SCALED[name]
    settings: dict[str, Any] = {"seed": 0, "strict": True}
    chip = program(kind(how), PROFILES["wnoise"], digital_layers=["table"], **settings)
    with pytest.raises(ValueError, match=rf"multiplies with .*{weight}.* outside of a layer"):
        chip.examine(TENSOR)
    left = ["table", weight, "listed"]
    program(kind(how), PROFILES["wnoise"], digital_layers=left, **settings).examine(TENSOR)


def chosen(n: Any, x: torch.Tensor) -> torch.Tensor:
    """Which of the experts an image picks, `[batch]`."""
    return n.fc(features(n, x)).argmax(1)


def experts(n: Any) -> torch.Tensor:
    """`[expert, out, in]`, of one parameter."""
    return n.w.view(4, 32, 128)


def widened(n: Any, y: torch.Tensor) -> torch.Tensor:
    return n.fc(y.repeat(1, 4))


PICKED: dict[str, Forward] = {
    "by index": lambda n, x: widened(n, applied(experts(n)[chosen(n, x)], features(n, x))),
    "einsum": lambda n, x: widened(
        n, torch.einsum("noi,ni->no", experts(n)[chosen(n, x)], features(n, x))
    ),
    "index_select": lambda n, x: widened(
        n, applied(experts(n).index_select(0, chosen(n, x)), features(n, x))
    ),
    "a row of a table": lambda n, x: widened(
        n,
        applied(F.embedding(chosen(n, x), n.w[:4]).view(-1, 1, 128), features(n, x)).expand(-1, 32),
    ),
    "gather": lambda n, x: widened(
        n,
        applied(
            experts(n).gather(0, chosen(n, x).view(-1, 1, 1).expand(-1, 32, 128)), features(n, x)
        ),
    ),
    "take": lambda n, x: widened(
        n,
        applied(
            torch.take(n.w, chosen(n, x).view(-1, 1, 1) * 4096 + torch.arange(4096).view(32, 128)),
            features(n, x),
        ),
    ),
    "take_along_dim": lambda n, x: widened(
        n, applied(torch.take_along_dim(experts(n), chosen(n, x).view(-1, 1, 1), 0), features(n, x))
    ),
    "of either": lambda n, x: widened(
        n,
        applied(
            torch.where((chosen(n, x) > 1).view(-1, 1, 1), n.w[:32], n.w[32:64]), features(n, x)
        ),
    ),
    "of weights that are made of a parameter": lambda n, x: widened(
        n, applied(F.normalize(experts(n), dim=2)[chosen(n, x)], features(n, x))
    ),
    "and scaled by a gate": lambda n, x: widened(
        n, applied(experts(n)[chosen(n, x)] * gate(n, x)[:, None], features(n, x))
    ),
    "a sum written out": lambda n, x: widened(
        n, (experts(n)[chosen(n, x)] * features(n, x)[:, None]).sum(2)
    ),
    "the two best of them": lambda n, x: widened(
        n,
        torch.einsum(
            "nkoi,ni->no", experts(n)[n.fc(features(n, x)).topk(2).indices], features(n, x)
        ),
    ),
}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", PICKED)
def test_weights_that_the_input_picks_are_told(name: str, kind: type[Parts]) -> None:
    telling.warn_once.cache_clear()
    model, settings = kind(PICKED[name]), {"seed": 0, "digital_layers": ["table"]}
    told = r"multiplies with parts of w that the input picks.*digital_layers=\['w'\]"
    with pytest.warns(UserWarning, match=told) as warned:
        program(model, PROFILES["wnoise"], **settings).examine(TENSOR)
    share = re.search(r"with (\d+)% of", str(warned[0].message))
    assert share is not None
    assert 1 <= int(share[1]) < 100
    with pytest.raises(ValueError, match=told):
        program(model, PROFILES["wnoise"], strict=True, **settings).examine(TENSOR)
    settings["digital_layers"] = ["table", "w"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program(model, PROFILES["wnoise"], strict=True, **settings).examine(TENSOR)


def test_the_share_of_picked_weights_is_that_of_their_products() -> None:
    telling.warn_once.cache_clear()
    for name in ("by index", "a sum written out"):
        model = Parts(PICKED[name])
        conv = model.conv(TENSOR[:1])[0].numel() * model.conv.weight[0].numel()
        own = 32 * 128
        share = own / (own + 2 * conv + 2 * 128 * 4)  # features and fc run for the choice too
        with pytest.warns(UserWarning, match=rf"with {share:.0%} of"):
            program(model, PROFILES["wnoise"], seed=0, digital_layers=["table"]).examine(TENSOR)
        telling.warn_once.cache_clear()


PICKS_WITHOUT_PRODUCTS: dict[str, Forward] = {
    "a code of a book": lambda n, x: n.fc(features(n, x) + n.w[chosen(n, x)]),
    "a scale for each class": lambda n, x: n.fc(features(n, x) * n.w[chosen(n, x)]),
    "numbers of a vector": lambda n, x: n.fc(
        attention_of(features(n, x) * n.scale[chosen(n, x)][:, None])
    ),
    "learned edges": lambda n, x: n.fc(
        (n.scale[(tokens(n, x) @ tokens(n, x).mT > 0).long()] @ tokens(n, x)).mean(1)
    ),
    "features at an index": lambda n, x: n.fc(
        attention_of(features(n, x)[:, torch.arange(127, -1, -1)])
    ),
    "rows that are given to a layer": lambda n, x: n.fc(features(n, x)) + n.fc(n.w[chosen(n, x)]),
}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", PICKS_WITHOUT_PRODUCTS)
def test_what_is_picked_without_a_product_is_no_weight(name: str, kind: type[Parts]) -> None:
    model = kind(PICKS_WITHOUT_PRODUCTS[name])
    settings: dict[str, Any] = {"seed": 0, "strict": True, "digital_layers": ["table"]}
    program(model, PROFILES["wnoise"], **settings).examine(TENSOR)


class Bag(nn.Module):
    """A masked mean of the rows that token ids name, and attention over them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(9, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows, there = self.table(ids), (ids != 0)[..., None].float()
        mean = (rows * there).sum(1) / there.sum(1).clamp(min=1)
        return self.fc(mean + ((rows @ rows.mT).softmax(-1) @ rows).mean(1))


def test_rows_that_token_ids_name_are_activations() -> None:
    ids = torch.arange(30).view(5, 6) % 9
    program(Bag().eval(), PROFILES["wnoise"], seed=0, strict=True).examine(ids)


OUTSIDE: dict[str, Forward] = {
    "numpy": lambda n, x: n.fc(
        torch.from_numpy(features(n, x).detach().numpy() @ n.w.detach().numpy().T)
    ),
    "an array of it": lambda n, x: n.fc(
        torch.from_numpy(features(n, x).detach().numpy() @ np.asarray(n.w.detach()).T)
    ),
    "a list of it": lambda n, x: n.fc(
        torch.from_numpy(features(n, x).detach().numpy() @ np.float32(n.w.data.tolist()).T)
    ),
    "what is made of it": lambda n, x: n.fc(
        torch.from_numpy(features(n, x).detach().numpy() @ (n.w.detach() / 2).T.numpy())
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_parameters_that_leave_torch_are_refused(name: str) -> None:
    model = Parts(OUTSIDE[name])
    chip = program(model, PROFILES["wnoise"], seed=0, digital_layers=["table"])
    with pytest.raises(ValueError, match=r"takes the numbers of w out of PyTorch.*\['w'\]"):
        chip.examine(TENSOR)
    left = ["table", "w"]
    program(model, PROFILES["wnoise"], seed=0, digital_layers=left, strict=True).examine(TENSOR)


def test_features_that_leave_torch_are_features_still() -> None:
    def beside(n: Any, x: torch.Tensor) -> torch.Tensor:
        return n.fc(F.linear(torch.from_numpy(np.tanh(features(n, x).detach().numpy())), n.w))

    chip = program(Parts(beside), PROFILES["wnoise"], seed=0, digital_layers=["table"])
    with pytest.raises(ValueError, match="multiplies with w outside of a layer"):
        chip.examine(TENSOR)


def test_a_vector_of_parameters_may_leave_torch() -> None:
    def scaled(n: Any, x: torch.Tensor) -> torch.Tensor:
        return n.fc(features(n, x) * torch.from_numpy(n.scale.detach().numpy()))

    settings: dict[str, Any] = {"seed": 0, "strict": True, "digital_layers": ["table"]}
    program(Parts(scaled), PROFILES["wnoise"], **settings).examine(TENSOR)


def tokens(n: Any, x: torch.Tensor) -> torch.Tensor:
    """`[batch, 4 tokens, 128]`."""
    return features(n, x).view(-1, 4, 32).repeat(1, 1, 4)


def heads(t: torch.Tensor) -> torch.Tensor:
    return t.view(-1, 4, 2, 64).transpose(1, 2)


def root_mean_square(t: torch.Tensor) -> torch.Tensor:
    return torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6)


def attended(n: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return n.fc(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 128).mean(1))


def normed(n: Any, x: torch.Tensor, first: bool) -> torch.Tensor:
    """Queries and keys with RMSNorm's weights, in either order, and a learned temperature."""
    t = heads(tokens(n, x))
    q, k = (
        t * (root_mean_square(t) * one) if first else one * (t * root_mean_square(t))
        for one in (n.scale[:64], n.scale[64:])
    )
    return attended(n, q * n.w[:2, :1, None], k, t)


def relative_bias(n: Any, x: torch.Tensor) -> torch.Tensor:
    """WavLM's: a learned bias of attention, which the input scales."""
    t = heads(tokens(n, x))
    bias = n.w[:2, :16].view(2, 4, 4) * n.fc(features(n, x))[:, :2, None, None]
    by_hand = ((t @ t.mT) * 0.1 + bias).softmax(-1) @ t
    whole = F.scaled_dot_product_attention(t, t, t, attn_mask=bias)
    return n.fc((by_hand + whole).transpose(1, 2).reshape(-1, 4, 128).mean(1))


def positions(n: Any, x: torch.Tensor) -> torch.Tensor:
    t = tokens(n, x) + n.w[:4] * n.fc(features(n, x)).mean(1)[:, None, None]
    return n.fc(((t @ t.mT / 100).softmax(-1) @ t).mean(1))


def gated_units(n: Any, x: torch.Tensor) -> torch.Tensor:
    """FLASH's: queries and keys are one projection, scaled and shifted twice."""
    q, k = (tokens(n, x)[:, :, None] * n.w[:2] + n.w[2:4]).unbind(2)
    return n.fc((F.relu(q @ k.mT / 100) ** 2 @ tokens(n, x)).mean(1))


def graph_attention(n: Any, x: torch.Tensor) -> torch.Tensor:
    t = heads(tokens(n, x))
    there, back = ((t * n.w[:2, i * 64 : (i + 1) * 64][:, None]).sum(-1) for i in (0, 1))
    weights = F.leaky_relu(there[..., None] + back[..., None, :]).softmax(-1)
    return n.fc((weights @ t).transpose(1, 2).reshape(-1, 4, 128).mean(1))


def slopes(n: Any, x: torch.Tensor) -> torch.Tensor:
    """A graph's edges, which are of the input, with a learned factor for each head."""
    t = tokens(n, x)
    edges = (t @ t.mT).sigmoid()[:, None] * n.scale[:2, None, None]
    return n.fc((edges @ heads(t)).transpose(1, 2).reshape(-1, 4, 128).mean(1))


def descriptors(n: Any, x: torch.Tensor) -> torch.Tensor:
    """NetVLAD's residuals to centres, summed by assignment, and their similarities."""
    t = tokens(n, x)
    shares = n.fc(t).softmax(-1)
    sums = shares.mT @ t - shares.sum(1)[..., None] * n.w[:4]
    return n.fc((sums @ sums.mT / 100).softmax(-1) @ sums).mean(1)


NO_WEIGHTS: dict[str, Forward] = {
    "normed queries and keys": lambda n, x: normed(n, x, first=False),
    "normed, the scales first": lambda n, x: normed(n, x, first=True),
    "layer scale with a gate": lambda n, x: n.fc(
        attention_of(features(n, x) * (n.scale * n.fc(features(n, x))[:, :1]))
    ),
    "squeeze and excite": lambda n, x: n.fc(
        attention_of(features(n, x) * (gate(n, x) * n.scale).sigmoid())
    ),
    "feature-wise modulation": lambda n, x: n.fc(
        attention_of(features(n, x) * (1 + gate(n, x)) + gate(n, x) * n.scale)
    ),
    "a bias that the input scales": relative_bias,
    "positions that the input scales": positions,
    "two of one projection": gated_units,
    "graph attention": graph_attention,
    "slopes": slopes,
    "descriptors": descriptors,
    "a weight that a layer makes": lambda n, x: applied(
        n.fc(tokens(n, x)).mT * n.scale[:4, None], tokens(n, x)[:, :, 0]
    ),
    "scaled tokens of a layer": lambda n, x: n.fc(n.w[:4] * gate(n, x)[:, None]).mean(1),
}


def attention_of(h: torch.Tensor) -> torch.Tensor:
    t = h.view(-1, 4, 32)
    return ((t @ t.mT / 100).softmax(-1) @ t).flatten(1)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_activations_times_parameters_are_no_weights(name: str, kind: type[Parts]) -> None:
    model = kind(NO_WEIGHTS[name])
    settings: dict[str, Any] = {"seed": 0, "strict": True, "digital_layers": ["table"]}
    program(model, PROFILES["wnoise"], **settings).examine(TENSOR)

"""Products with parameters that no tile holds: in inference mode, sparse, and of other kinds."""

from collections.abc import Callable
from typing import Any

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
    "mean": lambda n, x: n.fc((features(n, x)[:, None] * n.w[:4]).mean(1)),
    "sum of an expanded view": lambda n, x: n.fc(
        (features(n, x)[:, None].expand(-1, 4, -1) * n.w[:4]).sum(-2)
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


@pytest.mark.parametrize("name", NO_DISTANCES)
def test_what_is_no_distance_is_not_told(name: str) -> None:
    chip = program(
        Parts(NO_DISTANCES[name]), PROFILES["wnoise"], seed=0, digital_layers=["table"], strict=True
    )
    chip.examine(TENSOR)

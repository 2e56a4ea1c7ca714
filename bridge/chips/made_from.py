"""What a stored table of predictions was made from, and whether it is what is asked for now."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from bridge.chips.behaviour import behaviour, changed_layers, other_code, other_layers
from bridge.chips.files import fingerprint
from bridge.chips.outcomes import Keep, kept_columns
from bridge.chips.programming import Chip
from jaxcurv.data.reading import read_batch
from jaxcurv.data.sources import Source

_IDENTIFYING = 16  # samples, evenly spread, that tell a data set from another
_COLUMNS = ("index", "path", "label", "prediction", "correct")  # those that keep does not make
_MADE_BY = b"bridge.predict"  # the schema's metadata of what a stored table was made from
_CODE = b"bridge.predict.code"  # and what tells the network's code
_KEPT = b"bridge.predict.kept"  # the first samples' logits, where something else is kept of them
_FIRST = 2  # samples by which what is kept is known
_TOLD = {
    "chip": "the weights or the chip are others",
    "samples": "the samples are more or fewer",
    "some": "the samples are others",
    "keep": "keep is another",
    "reads": "reads are more or fewer",
}


def identity_of(
    chip: Chip | nn.Module, source: Source, keep: Keep | None, reads: int
) -> tuple[dict[str, Any], NDArray[Any]]:
    """What decides the table but the network's code: the chip, the samples as far as some of them
    tell, what is kept of the logits, by its name, and how many reads there are, of several. Also
    the images of those samples."""
    some = hashlib.sha256()
    positions = np.linspace(0, len(source) - 1, _IDENTIFYING, dtype=int).tolist()
    images, *numbers = read_batch(source, positions, pixels=np.float32)
    for image, label, index in zip(images, *numbers, strict=True):
        some.update(image.tobytes())
        some.update(f"{label} {index}".encode())
    identity = {
        "chip": fingerprint(chip),
        "samples": len(source),
        "some": some.hexdigest(),
        "keep": None if keep is None else getattr(keep, "__qualname__", type(keep).__qualname__),
        **({"reads": reads} if reads > 1 else {}),
    }
    return identity, images


def metadata_of(
    identity: dict[str, Any], network: nn.Module, images: torch.Tensor, kept: "Remembering | None"
) -> dict[bytes, bytes]:
    """What a table's file says of itself, for `refuse_other`.

    Args:
      identity: as `identity_of` gives it.
      network: a chip's, or a digital one.
      images: some of the samples', as the network takes them.
      kept: what made the table's columns in place of the logits, once it has.
    """
    described: dict[bytes, Any] = {_MADE_BY: identity, _CODE: behaviour(network, images)}
    if kept is not None:
        described[_KEPT] = kept.first
    return {name: json.dumps(value).encode() for name, value in described.items()}


def refuse_other(
    table: pa.Table,
    identity: dict[str, Any],
    network: nn.Module,
    images: torch.Tensor,
    keep: Keep | None,
    path: Path,
) -> None:
    """Refuses a table that was made from something else.

    Args:
      table: as its file holds it.
      identity, network, images: as for `metadata_of`.
      keep: what is to be kept of the logits now.
      path: the file.

    Raises:
      ValueError: what differs is told, and what to do.
    """
    metadata = table.schema.metadata or {}
    cure = "remove it, or give another out"
    if _MADE_BY not in metadata:
        raise ValueError(f"{path} was not made by predict: {cure}")
    stored = json.loads(metadata[_MADE_BY])
    code = json.loads(metadata.get(_CODE, b"null"))  # tables of earlier versions have none
    if stored != identity:
        told = [text for name, text in _TOLD.items() if stored.get(name) != identity.get(name)]
        if code is not None and (layer := other_layers(code, network)):
            told.append(layer)
        raise ValueError(
            f"{path} was made by another chip, from other samples or with another keep "
            f"({', '.join(told)}): {cure}"
        )
    if code is not None and (how := other_code(code, network, images)):
        compared = min(len(code["logits"]), identity["samples"])
        raise ValueError(
            f"{path} was made by a network of the same weights and other code. On {compared} of "
            f"the samples {how}: {cure}, or go on with the code that made it"
        )
    if code is not None and (layer := changed_layers(code, network)):
        warnings.warn(
            f"{path} was made by a network of other layers: {layer}. Its digital logits on some of "
            f"the samples are the same, on others they may not be: {cure}, or go on with the code "
            "that made it",
            stacklevel=3,
        )
    if keep is not None and _KEPT in metadata:
        _refuse_other_keep(table, json.loads(metadata[_KEPT]), keep, path)


class Remembering:
    """Keeps what another `keep` does, and remembers the logits of the first samples."""

    def __init__(self, keep: Keep):
        self._keep = keep
        self.first: list[list[float]] = []

    def __call__(self, logits: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        self.first = self.first or logits[:_FIRST].tolist()
        return self._keep(logits)


def _refuse_other_keep(table: pa.Table, first: list[list[float]], keep: Keep, path: Path) -> None:
    """Refuses a table whose first rows `keep` would make otherwise, of the logits that they had."""
    made = kept_columns(keep(np.array(first, np.float32)))
    there = {
        name: table[name].slice(0, len(first)).to_numpy()
        for name in table.column_names
        if name in made or name not in _COLUMNS
    }
    for name in {**there, **made}:
        if name not in there or name not in made or not _alike(there[name], made[name]):
            raise ValueError(
                f"{path} was made with another keep of the same name: of its first samples' "
                f"logits keep makes {name} {made.get(name, 'not')}, and the file has "
                f"{there.get(name, 'none')}: remove it, or give another out"
            )


def _alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind == "f" and other.dtype.kind == "f":
        return np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
    return one.shape == other.shape and bool((one == other).all())

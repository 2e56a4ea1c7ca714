"""Weights to and from safetensors files, with a JSON header."""

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bridge.weights.state import refuse_non_finite
from jaxcurv.storage.checksums import CHECKSUM, HEADER, check, hash_content, take_checksum
from jaxcurv.storage.files import write_whole

_STORABLE = (
    *(torch.float32, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


def save_weights(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor],
    header: Mapping[str, Any],
    *,
    masks: Collection[str] = (),
) -> None:
    """Writes a state dict and a JSON header to a safetensors file, atomically.

    Args:
      path: the file; its folder must exist.
      state_dict: float32, integer or bool tensors by name.
      header: what JSON can hold, such as the model's name, settings and data set.
      masks: names of tensors that may be infinite, such as those that attention adds.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a tensor of another floating-point type, non-finite weights, or a header that
        JSON cannot hold.
    """
    wrong = [f"{n} ({t.dtype})" for n, t in state_dict.items() if t.dtype not in _STORABLE]
    if wrong:
        raise ValueError(f"weights are stored as float32; convert {', '.join(wrong)} first")
    refuse_non_finite({name: one for name, one in state_dict.items() if name not in masks})
    try:
        described = json.dumps(dict(header), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the header of {path} is not plain JSON: {error}") from error
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} for {target.name}")
    content = _apart(state_dict)
    metadata = {HEADER: described, CHECKSUM: content_hash(content, described)}
    write_whole(target, lambda temporary: temporary.write_bytes(save(content, metadata)))


def _apart(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CPU tensors, none of which shares memory with another: safetensors refuses those."""
    content: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state_dict.items():
        one = tensor.detach().cpu().contiguous()
        where = one.untyped_storage().data_ptr()
        content[name] = one.clone() if where in seen else one
        seen.add(where)
    return content


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `save_weights` wrote; runs no code from the file.

    Returns:
      The state dict, CPU tensors by name, and the header.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no safetensors file, has no header, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file, replace it: {error}"
        ) from error
    header = parse_header(metadata)
    if header is None:
        raise ValueError(f"{path} has no header; write it with save_weights")
    found = take_checksum(metadata)
    check(path, found, lambda: content_hash(state_dict, metadata[HEADER]))
    return state_dict, header


def content_hash(state_dict: Mapping[str, torch.Tensor], header: str) -> str:
    """SHA-256 of tensors on the CPU and the JSON header, in hexadecimal digits."""
    return hash_content({name: tensor.numpy() for name, tensor in state_dict.items()}, header)


def parse_header(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The header that `save_weights` wrote; None for another program's metadata."""
    with suppress(ValueError, RecursionError):  # no JSON, or nested beyond measure
        header = json.loads(metadata.get(HEADER, ""))
        return header if isinstance(header, dict) else None
    return None

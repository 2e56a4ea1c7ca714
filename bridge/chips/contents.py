"""What tensors and other state of a network hold: for files, and for a hash."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_STORED = (
    *(torch.float32, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
_SPARSE: dict[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
_PLACE = re.compile(r" at 0x[0-9a-f]+")  # in memory, in how an object is shown


def plain_parts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor as dense ones of dtypes that a chip's file holds, by what follows its name there.

    Args:
      tensor: of any dtype; dense or sparse.

    Returns:
      `{"": tensor}` where the file holds it as it is. Else its bytes, uint8 `[*shape, itemsize]`,
      by its dtype, such as "/complex64"; or what makes it up, such as "/indices" and "/values".

    Raises:
      ValueError: a quantised or nested tensor, which has no such parts.
    """
    tensor = tensor.detach().cpu()
    if tensor.is_quantized or tensor.is_nested:
        kind, cure = (
            (f"quantised ({tensor.dtype})", "dequantize()")
            if tensor.is_quantized
            else ("nested", "to_padded_tensor(0.0)")
        )
        raise ValueError(f"a {kind} tensor, which a file does not hold: keep tensor.{cure}")
    if tensor.layout in _SPARSE:
        tensor = tensor.coalesce() if tensor.layout == torch.sparse_coo else tensor
        made_of = {f"/{part}": getattr(tensor, part)() for part in _SPARSE[tensor.layout]}
        made_of["/shape"] = torch.tensor(tensor.shape)
        return {
            f"{name}{more}": one
            for name, part in made_of.items()
            for more, one in plain_parts(part).items()
        }
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if tensor.dtype in _STORED:
        return {"": tensor}
    return {f"/{tensor.dtype}".replace("torch.", ""): _bytes(tensor)}


def from_parts(like: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A tensor of what `plain_parts` made of it.

    Args:
      like: one of its dtype and layout; of the sparse ones a chip has `torch.sparse_coo` alone, for
        PyTorch copies no others.
      parts: by what follows its name.
    """
    if like.layout not in _SPARSE:
        if like.dtype in _STORED:
            return parts[""]
        (stored,) = parts.values()
        return stored.view(like.dtype).squeeze(-1)
    like, made_of = like.coalesce(), []
    for name in _SPARSE[like.layout]:
        part = getattr(like, name)()
        ends = {more: parts[f"/{name}{more}"] for more in plain_parts(part)}
        made_of.append(from_parts(part, ends))
    indices, values = made_of
    shape = tuple(parts["/shape"].tolist())
    return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True)


def add_content(digest: "hashlib._Hash", value: Any, within: frozenset[int] = frozenset()) -> None:
    """Adds to a hash what a tensor holds, or other state that a network gives, such as a dict.

    Of what is no tensor, array, container or plain value its attributes are added, and how it is
    shown; nothing that differs between two processes.
    """
    if isinstance(value, torch.Tensor):
        value = value.dequantize() if value.is_quantized else value
        for name, part in plain_parts(value).items():
            digest.update(name.encode())
            digest.update(_bytes(part).numpy().tobytes())
        return
    within |= {id(value)}
    digest.update(type(value).__qualname__.encode())
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        return
    if isinstance(value, Mapping):
        items = [item for one in value.items() for item in one]
    elif isinstance(value, (set, frozenset)):
        items = sorted(value, key=repr)
    elif isinstance(value, list | tuple):
        items = list(value)
    elif isinstance(value, type) or not _attributes(value):
        digest.update(_PLACE.sub("", repr(value)).encode())
        return
    else:
        items = [item for one in _attributes(value).items() for item in one]
    digest.update(f"({len(items)})".encode())
    for item in items:
        if id(item) not in within:
            add_content(digest, item, within)


def sum_of_bits(tensor: torch.Tensor) -> int:
    """Sum of a tensor's bits as whole numbers: quick, and the same on every device.

    Tells most changes, but not values that change places. 0 for sparse and quantised tensors.
    """
    bits = torch.uint8 if tensor.element_size() % 4 else torch.int32
    try:
        return int(tensor.detach().reshape(-1).view(bits).sum(dtype=torch.int64))
    except (RuntimeError, TypeError):
        return 0


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes that an object has of its own."""
    found: dict[str, Any] = getattr(value, "__dict__", {})
    return found


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 `[*shape, itemsize]`."""
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return tensor.unsqueeze(-1).view(torch.uint8)

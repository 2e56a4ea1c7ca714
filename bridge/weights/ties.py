"""Weights with several names: layers that a network shares within itself."""

from collections.abc import Collection, Hashable, Mapping

import torch
from flax import nnx

Path = tuple[Hashable, ...]


class Paths:
    """All the paths at which a Flax model has a module or a variable that is found at one."""

    def __init__(self, model: nnx.Module):
        groups = nnx.find_duplicates(model)
        self._groups = [tuple(group) for group in groups if not _holds_itself(group)]

    def of(self, path: Path) -> tuple[Path, ...]:
        """The path itself, then the others."""
        found = [path]
        for one in found:  # which grows
            for group in self._groups:
                for start in group:
                    if one[: len(start)] == start:
                        rest = one[len(start) :]
                        found += [p for g in group if (p := (*g, *rest)) not in found]
        return tuple(found)


def _holds_itself(group: Collection[Path]) -> bool:
    """Whether one of the paths leads through another, as that from a layer back to the model."""
    return any(a != b and b[: len(a)] == a for a in group for b in group)


def memory(tensor: torch.Tensor) -> tuple[Hashable, ...] | None:
    """What tensors that are one have in common; None where a tensor has no memory of its own."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    return (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())


def without_ties(
    tensors: Mapping[str, torch.Tensor], known: Collection[str]
) -> dict[str, torch.Tensor]:
    """The tensors, but for those of unknown names that are one with a tensor of a known name."""
    kept = {memory(tensor) for name, tensor in tensors.items() if name in known} - {None}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in known or memory(tensor) not in kept
    }

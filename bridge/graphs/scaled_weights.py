"""Weights that the input scales before they are multiplied with: modulated and gated layers."""

from collections.abc import Iterable
from typing import NamedTuple

_SCALING = {"mul", "div"}
_KEEPS = {
    *("view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "unsqueeze"),
    *("squeeze", "slice", "select", "clone", "contiguous", "add", "sub", "neg", "getitem"),
    *("sum", "mean", "cat", "stack", "split", "split_with_sizes", "unbind", "detach", "alias"),
}
"""Operations after which weights that the input scales are such weights still."""


class Scaled(NamedTuple):
    """What a tensor is but for scales; nothing for most tensors.

    Attributes:
      parameters: names of the parameters that it is, times what depends on the input.
      scales: how many numbers the largest of those factors has.
    """

    parameters: frozenset[str] = frozenset()
    scales: int = 0


class Operand(NamedTuple):
    """A tensor that an operation takes.

    Attributes:
      input: whether it depends on the input.
      parameters: names of those that it is made of.
      shape: its shape.
      numbers: how many numbers it has, those of an expanded axis once.
      scaled: what it is but for scales.
    """

    input: bool
    parameters: frozenset[str]
    shape: tuple[int, ...]
    numbers: int
    scaled: Scaled


def scaled_weights(operation: str, operands: Iterable[Operand], numbers: int) -> Scaled:
    """What the result of an operation is but for scales.

    Nothing where a factor has as many numbers as the result: activations times a parameter. Vectors
    that are no larger than what they are multiplied with are scales themselves.

    Args:
      operation: PyTorch's name of it, such as "mul".
      operands: the tensors that it takes.
      numbers: how many numbers the result has, those of an expanded axis once.
    """
    if operation not in _SCALING and operation not in _KEEPS:
        return Scaled()
    scales, kept, alone = 0, frozenset[str](), []
    for one in operands:
        if one.scaled.parameters:
            scales, kept = max(scales, one.scaled.scales), kept | one.scaled.parameters
        elif one.input and operation not in _SCALING:
            return Scaled()  # activations are added
        elif one.input:
            scales = max(scales, one.numbers)
        else:
            alone.append(one)
    if not 0 < scales < numbers:
        return Scaled()
    weights = [
        one.parameters for one in alone if sum(n > 1 for n in one.shape) > 1 or one.numbers > scales
    ]
    return Scaled(kept.union(*weights), scales)

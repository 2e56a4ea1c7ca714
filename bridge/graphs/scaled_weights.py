"""Weights that the input makes its own before they are multiplied with.

It scales them (modulated and gated layers), or picks a part of them (experts).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_SCALING = {"mul", "div"}
_KEEPS = {
    *("view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "unsqueeze"),
    *("squeeze", "slice", "select", "clone", "contiguous", "add", "sub", "neg", "getitem"),
    *("sum", "mean", "cat", "stack", "split", "split_with_sizes", "unbind", "detach", "alias"),
}
"""Operations after which weights that the input scales are such weights still."""
_PICKS = {
    *("index", "_unsafe_index", "index_select", "embedding", "gather", "take", "masked_select"),
}
"""Operations whose result is a part of their first operand, which the others choose."""


class Scaled(NamedTuple):
    """What a tensor is but for scales; nothing for most tensors.

    Attributes:
      parameters: names of the parameters that it is, times what depends on the input, or of which
        it is a part that the input picks.
      scales: how many numbers the largest of those factors has; 1 where there are none.
      picked: whether the input picks a part of them.
    """

    parameters: frozenset[str] = frozenset()
    scales: int = 0
    picked: bool = False


class Operand(NamedTuple):
    """A tensor that an operation takes.

    Attributes:
      input: whether it depends on the input.
      parameters: names of those that it is made of.
      shape: its shape.
      numbers: how many numbers it has, those of an expanded axis once.
      scaled: what it is but for scales.
      ids: whether it is whole numbers that the input itself has, such as token ids; rows of a table
        that these name are activations.
    """

    input: bool
    parameters: frozenset[str]
    shape: tuple[int, ...]
    numbers: int
    scaled: Scaled
    ids: bool = False


def are_ids(floating: bool, operands: Iterable[tuple[bool, bool]]) -> bool:
    """Whether the result of an operation is whole numbers that the input itself has.

    Args:
      floating: whether the result is of a float type.
      operands: of each whether it depends on the input, and whether it is such numbers.
    """
    of_input = [ids for by_input, ids in operands if by_input]
    return not floating and bool(of_input) and all(of_input)


def scaled_weights(operation: str, operands: Iterable[Operand], numbers: int) -> Scaled:
    """What the result of an operation is but for scales, and for the choice of a part.

    Nothing where a factor has as many numbers as the result: activations times a parameter. Vectors
    that are no larger than what they are multiplied with are scales themselves,
    and so are numbers that are picked of a vector, or of two by a condition for each.

    Args:
      operation: PyTorch's name of it, such as "mul".
      operands: the tensors that it takes.
      numbers: how many numbers the result has, those of an expanded axis once.
    """
    operands = list(operands)
    if operation in _PICKS or operation == "where":
        return _picked(operation, operands, numbers)
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
    return Scaled(kept.union(*weights), scales, any(one.scaled.picked for one in operands))


def _picked(operation: str, operands: Sequence[Operand], numbers: int) -> Scaled:
    """What an operation gives that takes a part of its first operand, or of either by a condition.

    A part of a part is one; of a vector there are numbers only.
    """
    if operation == "where":
        choice, sources = operands[:1], operands[1:]
        if choice[0].numbers >= numbers:
            return Scaled()
    else:
        sources, choice = operands[:1], operands[1:]
        if sources[0].scaled.parameters:
            return sources[0].scaled
    matrices = any(sum(n > 1 for n in one.shape) > 1 for one in sources)
    chosen = any(one.input and not one.ids for one in choice)
    if not matrices or any(one.input for one in sources) or not chosen:
        return Scaled()
    parameters = frozenset[str]().union(*(one.parameters for one in sources))
    return Scaled(parameters, 1, True) if parameters else Scaled()

"""A network as it is evaluated: its mode, and the logits that it gives."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def require_eval(network: nn.Module, what: str) -> None:
    """Refuses a network a part of which computes as in training; `what` is its name in the message.

    Raises:
      ValueError: a part is in training mode, or a BatchNorm keeps no running statistics: a sample's
        logits would depend on the others in its batch, or be random.
    """
    for name, part in network.named_modules():
        if part.training:
            where = f" ({name})" if name else ""
            raise ValueError(f"{what}{where} is in training mode; call eval() first")
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            raise ValueError(
                f"{what} mixes the samples of a batch: {name or type(part).__name__} keeps no "
                "running statistics; train it with track_running_stats=True"
            )


def as_logits(output: Any) -> torch.Tensor:
    """A network's output as float32 logits `[batch, class]` on the CPU.

    Raises:
      ValueError: it is something else, such as a tuple.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"the module must give logits [batch, class], not {got}: wrap it in one that returns "
            "the logits alone"
        )
    return output.float().cpu()

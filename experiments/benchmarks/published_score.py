"""The published curvature score stated in PyTorch: the yardstick of `benchmark`.

The algorithm of Garg et al. (2024) and Ravikumar et al. (2024) as their code runs it, eagerly: a
forward and a backward pass of both branches for every probe, of a loss averaged over the batch.
Weight gradients are left out, which favours it.
"""

import torch
from torch import nn
from torch.nn import functional


def published_curvature(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    step: float,
    probes: int,
    signs: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """(1/n) sum_i || grad_x (L(x + v_i) - L(x)) ||_2 with v_i = h (s_i + 1e-7), s_i = +-1.

    L is the cross-entropy averaged over the batch, so that a score is divided by the batch size.
    Computed channels-last, where the model is too.

    Args:
      model: the network, in evaluation mode and on the images' device.
      images: float `[batch, channel, height, width]`.
      labels: int64 `[batch]`.
      step: h.
      probes: n.
      signs: s, `[probes, batch, channel, height, width]`; drawn probe by probe if None.
      generator: gives the draws; on the images' device.

    Returns:
      Scores `[batch]`.

    Raises:
      ValueError: a model in training mode, or signs of another shape.
    """
    if model.training:
        raise ValueError("the model is in training mode: switch it to evaluation, model.eval()")
    if signs is not None and signs.shape != (probes, *images.shape):
        raise ValueError(f"signs must be {(probes, *images.shape)}; got {tuple(signs.shape)}")
    images = images.contiguous(memory_format=torch.channels_last)
    total = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    for number in range(probes):
        drawn = _signs(images, generator) if signs is None else signs[number]
        x = images.detach().requires_grad_()
        moved = functional.cross_entropy(model(x + step * (drawn + 1e-7)), labels)
        still = functional.cross_entropy(model(x), labels)
        (difference,) = torch.autograd.grad(moved - still, x)
        total += difference.flatten(1).norm(dim=1)
    return total / probes


def _signs(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    drawn = torch.empty_like(like, memory_format=torch.channels_last)
    return drawn.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

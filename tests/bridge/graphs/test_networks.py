"""Whole networks in JAX: their logits and gradients are PyTorch's."""

import jax
import numpy as np
import pytest
import torch

import bridge
from tests.torch_networks import NETWORKS, made

REL = 1e-5  # of the largest


def channels_last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_pytorch(name):
    module, shape = made(name)
    logits_fn, params = bridge.to_jax(module, channels_last(torch.randn(2, *shape).numpy()))
    others = torch.randn(3, *shape, requires_grad=True)
    theirs = module(others)
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    wanted = [others, *(module.get_parameter(name) for name, _ in module.named_parameters())]
    found = torch.autograd.grad((theirs * torch.from_numpy(weights)).sum(), wanted)
    names = ["images", *(name for name, _ in module.named_parameters())]
    expected = dict(zip(names, (gradient.numpy() for gradient in found), strict=True))
    expected["images"] = channels_last(expected["images"])

    def weighted(params, images):
        logits = logits_fn(params, images)
        return (logits * weights).sum(), logits

    images = channels_last(others.detach().numpy())
    with jax.default_matmul_precision("highest"):
        program = jax.jit(jax.grad(weighted, (0, 1), has_aux=True)).lower(params, images)
        quick = program.compile(compiler_options={"xla_backend_optimization_level": 0})
        (of_params, of_images), logits = quick(params, images)
    wanted = theirs.detach().numpy()
    np.testing.assert_allclose(logits, wanted, atol=REL * np.abs(wanted).max(), rtol=0)
    ours = {"images": of_images, **of_params}
    assert set(expected) <= set(ours)
    # Some gradients are the rounding of sums that cancel, as that of a bias before BatchNorm.
    atol = 3 * REL * max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        np.testing.assert_allclose(ours[name], gradient, atol=atol, rtol=0, err_msg=name)

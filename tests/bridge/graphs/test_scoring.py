"""`bridge.score`: a torch module's table is that of its function in JAX."""

import numpy as np
import pytest
import torch
from torch import nn

import bridge
import jaxcurv
from tests.torch_networks import made

LABELS = np.array([3, 1, 4, 1, 5])


@pytest.fixture(scope="module")
def module():
    return made("ViT")[0]


@pytest.fixture(scope="module")
def tensors():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def table(module, tensors):
    return bridge.score(module, tensors, LABELS)


def test_the_loss_is_pytorch_s_and_the_scores_those_of_the_two_steps(module, tensors, table):
    with torch.no_grad():
        logits = module(tensors)
        losses = nn.functional.cross_entropy(logits, torch.from_numpy(LABELS), reduction="none")
    np.testing.assert_allclose(table["loss"], losses.numpy(), rtol=1e-5)
    assert table["prediction"].tolist() == logits.argmax(1).tolist()
    images = tensors.permute(0, 2, 3, 1).numpy()
    logits_fn, params = bridge.to_jax(module, images)
    steps = jaxcurv.score_dataset(logits_fn, (images, LABELS), params=params)
    assert table.equals(steps)


def test_a_data_set_brings_its_labels(module, tensors, table):
    pairs = torch.utils.data.TensorDataset(tensors, torch.from_numpy(LABELS))
    assert bridge.score(module, pairs).equals(table)


def test_curvature_is_that_of_the_closed_form():
    """A linear layer's Hessian is W^T (diag p - p p^T) W, whose trace the estimator sees."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    images = torch.randn(3, 3, 2, 2)
    labels = np.array([0, 1, 2])
    estimators = {"trace": jaxcurv.estimators.HessianTrace(probes=200)}
    found = bridge.score(module, images, labels, estimators=estimators)
    weight = module[1].weight.detach().double().numpy()
    p = module(images).double().softmax(1).detach().numpy()
    exact = [np.trace(weight.T @ (np.diag(one) - np.outer(one, one)) @ weight) for one in p]
    error = found["trace_standard_error"].to_numpy()
    assert (np.abs(found["trace"] - exact) < 5 * error).all()
    assert (error < 0.15 * np.array(exact)).all()


def test_weights_of_others_are_refused(module, tensors):
    with pytest.raises(ValueError, match="params cannot be given: the weights are the module's"):
        bridge.score(module, tensors, LABELS, params={})


def test_nothing_to_score_is_refused(module, tensors):
    with pytest.raises(ValueError, match="no samples"):
        bridge.score(module, tensors[:0], LABELS[:0])

"""Stage `export`: the weights in PyTorch."""

from __future__ import annotations

import numpy as np

from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import sha256
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import digital_weights, load_model, require_classes
from experiments.runs.own_network import masks_of
from jaxcurv import data


def export(job: Job) -> Outcome:
    """Carries the weights to PyTorch; writes weights.safetensors if the logits agree."""
    import jax
    import torch

    import bridge
    from jaxcurv.engine.model import functional

    description = read_description(job.folder)
    dataset = load_data(job)
    require_classes(dataset, description)
    model, params = load_model(job, description, dataset)
    twin, state_dict = digital_weights(job, description, model)
    samples = data.read(dataset.test, range(min(64, len(dataset.test))), description="read test")
    normalisation = read_normalisation(description)
    images = normalisation.apply(samples.images)
    with jax.default_matmul_precision("highest"):
        function, weights = functional(model, params)
        jax_logits = np.asarray(jax.jit(function)(weights, images))
    predicted = bridge.predict(twin, data.Normalised(samples, normalisation), description="export")
    torch_logits = np.stack(predicted["logits"].to_numpy())
    error = float(np.abs(jax_logits - torch_logits).max() / np.abs(jax_logits).max())
    if not error < 1e-4:
        raise ValueError(
            f"logits of JAX and PyTorch differ by {error:.1e} relative (at most 1e-4 is allowed): "
            "weights not exported"
        )
    header = {
        **description,
        "checkpoint_sha256": sha256(job.folder / description["checkpoint"]),
        "data": job.experiment.data.name,
        "logits_relative_error": error,
    }
    path = job.folder / "weights.safetensors"
    bridge.weights.save_weights(path, state_dict, header, masks=masks_of(twin))
    return Outcome([path], f"cpu, torch {torch.__version__}")

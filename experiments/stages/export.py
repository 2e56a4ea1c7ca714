"""Stage `export`: the weights in PyTorch."""

from __future__ import annotations

import numpy as np

from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import sha256
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import build_torch, load_flax, require_classes
from jaxcurv import data


def export(job: Job) -> Outcome:
    """Carries the weights to PyTorch; writes weights.safetensors if the logits agree."""
    import jax
    import torch
    from flax import nnx

    import bridge

    description = read_description(job.folder)
    model = load_flax(job, description)
    state_dict = bridge.to_torch(model)
    twin = build_torch(description)
    twin.load_state_dict(state_dict)
    dataset = load_data(job)
    require_classes(dataset, description)
    samples = data.read(dataset.test, range(min(64, len(dataset.test))), description="read test")
    normalisation = read_normalisation(description)
    images = normalisation.apply(samples.images)
    with jax.default_matmul_precision("highest"):
        flax_logits = np.asarray(nnx.jit(lambda model, x: model(x))(model, images))
    predicted = bridge.predict(
        twin.eval(), data.Normalised(samples, normalisation), description="export"
    )
    torch_logits = np.stack(predicted["logits"].to_numpy())
    error = float(np.abs(flax_logits - torch_logits).max() / np.abs(flax_logits).max())
    if not error < 1e-4:
        raise ValueError(
            f"logits of Flax and PyTorch differ by {error:.1e} relative (at most 1e-4 is allowed): "
            "weights not exported"
        )
    header = {
        **description,
        "checkpoint_sha256": sha256(job.folder / description["checkpoint"]),
        "data": job.experiment.data.name,
        "logits_relative_error": error,
    }
    path = job.folder / "weights.safetensors"
    bridge.weights.save_weights(path, state_dict, header)
    return Outcome([path], f"cpu, torch {torch.__version__}")

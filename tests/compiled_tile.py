"""Statistics of the weight noise that AIHWKit's compiled tile draws for each matrix-vector product.

The PyTorch tile does not have this noise, so the compiled one is the oracle for ours. It does not
run wherever this package does; therefore its statistics are kept in `data/compiled_tile.json`,
which this makes, on Python 3.12 or later:

    python -m tests.compiled_tile tests/data/compiled_tile.json

Its noise is not reproducible: the clock seeds it. Another run differs by sampling error. On the CPU
each compiled tile picks its normals from a table of 32,768 of its own, whose mean and spread are
off by up to a percent: hence several tiles.
"""

import argparse
import json
import platform
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.tiles.inference import InferenceTile

SIGMA = 0.02
KINDS = {
    "constant": WeightNoiseType.ADDITIVE_CONSTANT,
    "pcm_read": WeightNoiseType.PCM_READ,
}
TILES = 20
REPEATS = 1000
"""Repetitions of each product, on each tile."""

Statistics = dict[str, np.ndarray]


def layer() -> tuple[np.ndarray, np.ndarray]:
    """Weights `[6, 40]`, whose largest magnitude is not 1, and biases `[6]`.

    The rows differ in scale, so that noise that depends on the weights differs between outputs.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 40)) * np.array([1.0, 0.5, 0.2, 0.1, 0.05, 0.02])[:, None]
    return weights.round(4), rng.normal(size=6).round(4)


def inputs() -> np.ndarray:
    """Input vectors `[8, 40]`: of several norms, signed, non-negative, sparse, and a single one."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 40))
    x[1] *= 0.1
    x[2] *= 10
    x[3] = rng.uniform(0.5, 1.0, 40)
    x[4:6] = np.maximum(x[4:6], 0)  # as after a ReLU
    x[5:7] *= rng.random((2, 40)) < 0.2
    x[7] = 3.0 * (np.arange(40) == 11)
    return x.round(4)


def exact(weights: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Outputs without noise, `[input, output]`."""
    return x @ weights.T + bias


def closed_form(kind: str, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The standard deviation that the noise should have, `[input, output]`.

    On the tile the largest weight is 1, and so is the largest magnitude of each input vector.
    """
    largest_weight = np.abs(weights).max()
    largest_input = np.abs(x).max(axis=1, keepdims=True)
    w, x = weights / largest_weight, x / largest_input
    variance = x**2 @ np.abs(w).T if kind == "pcm_read" else x**2 @ np.ones_like(w).T
    return largest_weight * largest_input * SIGMA * np.sqrt(variance)


def configuration(kind: str) -> InferenceRPUConfig:
    """Nothing but the weight noise, on the compiled tile; the rest as in `rpu_config`."""
    return InferenceRPUConfig(
        mapping=MappingParameter(
            digital_bias=True, weight_scaling_omega=1.0, weight_scaling_columnwise=False
        ),
        forward=IOParameters(
            inp_res=-1.0,
            inp_noise=0.0,
            out_noise=0.0,
            out_res=-1.0,
            out_bound=-1.0,
            noise_management=NoiseManagementType.ABS_MAX,
            bound_management=BoundManagementType.NONE,
            w_noise=SIGMA,
            w_noise_type=KINDS[kind],
        ),
        drift_compensation=None,
    )


def measure(kind: str, tiles: int) -> np.ndarray:
    """Errors of the outputs of compiled tiles, `[input, tile and repeat, output]`."""
    weights, bias = layer()
    x = inputs()
    batches = torch.tensor(x).float()[:, None].expand(-1, REPEATS, -1).contiguous()
    outputs = []
    for _ in range(tiles):
        analog = AnalogLinear(40, 6, rpu_config=configuration(kind)).eval()
        analog.set_weights(torch.tensor(weights).float(), torch.tensor(bias).float())
        assert type(analog.analog_module) is InferenceTile
        with torch.inference_mode():
            outputs.append(torch.stack([analog(batch) for batch in batches]))
    return torch.cat(outputs, dim=1).double().numpy() - exact(weights, bias, x)[:, None]


def statistics(errors: np.ndarray) -> Statistics:
    """Statistics of errors `[input, repeat, output]`: three `[input, output]`, others `[input]`.

    Kurtosis is 3 for Gaussian errors. The correlations are the largest magnitudes: between two
    outputs of a product, and between any outputs of two successive products.
    """
    repeats, outputs = errors.shape[1:]
    mean, std = errors.mean(axis=1), errors.std(axis=1)
    z = (errors - mean[:, None]) / std[:, None]
    within = np.einsum("nri,nrj->nij", z, z) / repeats * (1 - np.eye(outputs))
    successive = np.einsum("nri,nrj->nij", z[:, 1:], z[:, :-1]) / (repeats - 1)
    return {
        "mean": mean,
        "std": std,
        "kurtosis": (z**4).mean(axis=1),
        "correlation_within": np.abs(within).max(axis=(1, 2)),
        "correlation_successive": np.abs(successive).max(axis=(1, 2)),
    }


def describe(settings: Any) -> dict[str, Any]:
    """Settings of AIHWKit as JSON holds them."""
    return {k: v.name if isinstance(v, Enum) else v for k, v in asdict(settings).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    out = parser.parse_args().out
    weights, bias = layer()
    noise: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        found = statistics(measure(kind, TILES))
        noise[kind] = {
            name: np.vectorize(lambda v: float(f"{v:.6g}"))(values).tolist()
            for name, values in found.items()
        }
        ratio = found["std"] / closed_form(kind, weights, inputs())
        deviation = np.abs(ratio - 1).max() * np.sqrt(2 * TILES * REPEATS)
        print(
            f"{kind}: std / closed form {ratio.min():.4f} .. {ratio.max():.4f}, at most "
            f"{deviation:.1f} standard errors from 1: {'matches' if deviation < 5 else 'DIFFERS'}"
        )
    config = configuration("constant")
    record = {
        "command": f"python -m tests.compiled_tile {out.as_posix()}",
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "aihwkit")},
        "settings": {
            "tile": InferenceTile.__name__,
            "tiles": TILES,
            "repeats": TILES * REPEATS,
            "sigma": SIGMA,
            "w_noise_type": {kind: noise_type.name for kind, noise_type in KINDS.items()},
            "forward": describe(config.forward),
            "mapping": describe(config.mapping),
        },
        "weights": weights.tolist(),
        "bias": bias.tolist(),
        "inputs": inputs().tolist(),
        "noise": noise,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

"""Many chips at once are the chips one by one."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from bridge.chips import ADC, PCM, Profile, WeightNoise
from bridge.jax_chips import Chip, analog, predict, predict_chips
from bridge.jax_chips.groups import _that_fit
from jaxcurv import logit_scores
from tests.conftest import ROOT

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(11, 6, 6, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, 11)
ROWS = [{"image": IMAGES[i], "label": int(LABELS[i]), "index": 50 + i} for i in range(11)]
KEYS = jax.random.split(jax.random.key(7), 5)
NOISY = Profile(ADC(6), WeightNoise(0.05, drawn="per_mvm"), PCM())


def made(profile: Profile = NOISY) -> Chip:
    params = {
        "conv": jnp.asarray(RNG.normal(size=(3, 3, 3, 5)), jnp.float32),
        "head": jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32),
    }

    def logits_fn(params: Any, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(x).mean((1, 2)) @ params["head"]

    return analog(logits_fn, params, profile, IMAGES)


@pytest.mark.parametrize(
    "at_once", [1, 2, *(pytest.param(count, marks=pytest.mark.long) for count in (None, 5, 99))]
)
def test_many_chips_are_one_by_one(at_once: int | None) -> None:
    chip = made()
    found = predict_chips(chip, KEYS, ROWS, at_once=at_once, batch_size=4, keep=logit_scores)
    tables = [
        predict(chip, chip.program(chip.params, key), ROWS, keep=logit_scores) for key in KEYS
    ]
    expected = pd.concat(tables, ignore_index=True)
    assert found.columns.tolist() == ["chip", *expected.columns]
    assert found["chip"].tolist() == np.repeat(np.arange(5), 11).tolist()
    assert found["chip"].dtype == np.int64
    assert found["index"].tolist() == expected["index"].tolist()
    assert (found["prediction"] == expected["prediction"]).mean() > 0.95
    # A rounding at a converter's edge moves a logit by a code.
    close = np.isclose(found["margin"], expected["margin"], rtol=1e-4, atol=1e-5)
    assert close.mean() > 0.9


def test_linear_chips_to_the_last_digits() -> None:
    chip = made(Profile(memory=PCM()))
    found = predict_chips(chip, KEYS, ROWS, at_once=3)
    expected = [predict(chip, chip.program(chip.params, key), ROWS) for key in KEYS]
    logits = np.stack([*found["logits"]])
    np.testing.assert_allclose(
        logits, np.stack([*pd.concat(expected)["logits"]]), rtol=1e-4, atol=1e-5
    )
    assert len(np.unique(logits.reshape(5, -1)[:, 0])) == 5


def test_what_cannot_be_is_refused() -> None:
    chip = made()
    for keys in (KEYS[:0], KEYS[0], jax.random.PRNGKey(0), [KEYS[0], KEYS[1]]):
        with pytest.raises(ValueError, match=r"must be an array of random keys \[chips\]"):
            predict_chips(chip, keys, ROWS)
    legacy = jax.random.split(jax.random.PRNGKey(0), 2)
    assert predict_chips(chip, legacy, ROWS)["chip"].nunique() == 2
    with pytest.raises(ValueError, match="at_once must be"):
        predict_chips(chip, KEYS, ROWS, at_once=0)
    with pytest.raises(ValueError, match="no samples"):
        predict_chips(chip, KEYS, [])
    with pytest.raises(ValueError, match="50 occurs 2 times"):
        predict_chips(chip, KEYS, [*ROWS, ROWS[0]], at_once=2)


@pytest.mark.parametrize(
    ("limit", "held", "devices", "chips"),
    [(1000, 100, 1, 5), (1000, 100, 4, 20), (1999, 333, 2, 6), (100, 99, 3, 3), (0, 7, 2, 2)],
)
def test_a_group_takes_half_of_the_memory(limit: int, held: int, devices: int, chips: int) -> None:
    assert _that_fit(limit, held, devices) == chips


SPREAD = """
import jax
import numpy as np
from tests.bridge.jax_chips.test_groups import KEYS, ROWS, made
from bridge.chips import PCM, Profile
from bridge.jax_chips import groups, predict, predict_chips

assert len(jax.local_devices()) == 4
chip = made(Profile(memory=PCM()))
found = predict_chips(chip, KEYS[:4], ROWS, at_once=4)
expected = [predict(chip, chip.program(chip.params, key), ROWS) for key in KEYS[:4]]
for number, table in enumerate(expected):
    mine = found[found["chip"] == number]
    np.testing.assert_allclose(
        np.stack([*mine["logits"]]), np.stack([*table["logits"]]), rtol=1e-4, atol=1e-5
    )
images = np.stack([row["image"] for row in ROWS])
logits = groups._together(chip, KEYS[:4], jax.local_devices())(images, np.arange(11))
assert len(logits.sharding.device_set) == 4
seen = []
together = groups._together
groups._together = lambda chip, keys, them: seen.append(len(keys)) or together(chip, keys, them)
for at_once, sizes in ((3, [3, 3]), (8, [8]), (5, [8]), (1, [1] * 5)):  # of five chips
    seen.clear()
    found = predict_chips(chip, KEYS, ROWS, at_once=at_once)
    assert found["chip"].tolist() == np.repeat(np.arange(5), 11).tolist()
    assert seen == sizes, (at_once, seen)
print("spread")
"""


def test_a_group_is_spread_over_the_devices() -> None:
    four = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    flags = {"XLA_FLAGS": four, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SPREAD],
        cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "spread"

"""Scoring a data set on several devices, and with less memory than a batch needs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxcurv.storage.checksums import read_json
from tests.jaxcurv.test_dataset import KILLED, check_no_program_waits, on_devices

pytestmark = pytest.mark.long

SEVERAL = """
import jax, numpy as np
from jax.sharding import Mesh
from jaxcurv import (Adaptive, FiniteDifference, GaussNewton, HessianVector, LowRankGaussNewton,
                     score_dataset)

rng = np.random.default_rng(0)
first, last = (rng.normal(size=s).astype(np.float32) for s in ((3, 3, 2, 8), (8, 4)))

def model(params, x):
    x = jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME",
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x).mean((1, 2)) @ params[1]

source = [{"image": image, "label": n % 4, "index": 5 * n} for n, image in
          enumerate(rng.normal(size=(30, 6, 6, 2)).astype(np.float32))]
estimators = {"curvature": FiniteDifference(probes=3), "spectrum": GaussNewton(),
              "adaptive": Adaptive(FiniteDifference(probes=5), 0.17, 28),
              "product": HessianVector(2), "low_rank": LowRankGaussNewton(2, 2)}

def squared(logits, labels):
    return jax.numpy.sum((logits - jax.nn.one_hot(labels, 4)) ** 2, axis=1)

def score(**settings):
    return score_dataset(model, source, key=jax.random.key(0), params=(first, last),
                         estimators=estimators, **settings)

assert len(jax.devices()) == 4
one, two, four = (score(batch_size=8, mesh=Mesh(np.array(jax.devices()[:n]), ("batch",)))
                  for n in (1, 2, 4))
score(batch_size=8, loss=squared)  # a root without a closed form
every = score(batch_size=8)
assert every.equals(four)
assert np.array_equal(two["adaptive_probes"], one["adaptive_probes"])
for other in (two, four):
    for name in ("curvature", "spectrum", "adaptive", "product"):
        off = np.abs(other[name] / one[name] - 1)
        # Programs of other shapes round otherwise, and a difference across kinks magnifies it.
        assert off.median() < 1e-3 and off.max() < 5e-2, (name, off.describe())
grid = score(batch_size=8, mesh=Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b")))
assert grid.equals(four)
try:
    score(batch_size=6)
except ValueError as error:
    assert "multiple of the 4 devices; got 6" in str(error)
else:
    raise AssertionError("6 images were shared by 4 devices")
"""

MANY = """
import jax, numpy as np
from jax.sharding import Mesh
from jaxcurv import FiniteDifference, GaussNewton, LowRankGaussNewton, score_dataset

rng = np.random.default_rng(0)
weights = rng.normal(size=(5, 4)).astype(np.float32)
source = [{"image": image, "label": n % 4, "index": n}
          for n, image in enumerate(rng.normal(size=(500, 5)).astype(np.float32))]
estimators = {"curvature": FiniteDifference(probes=2), "spectrum": GaussNewton(),
              "low_rank": LowRankGaussNewton(2, 2)}

def model(weights, images):
    return jax.nn.relu(images) @ weights

def score(devices):
    mesh = Mesh(np.array(devices), ("batch",))
    return score_dataset(model, source, key=jax.random.key(0), params=weights, batch_size=8,
                         estimators=estimators, mesh=mesh)

assert len(jax.devices()) == 2
shared, alone = score(jax.devices()), score(jax.devices()[:1])
for name in estimators:
    off = np.abs(shared[name] / alone[name] - 1)
    assert off.median() < 1e-3 and off.max() < 5e-2, (name, off.describe())
"""

LITTLE = """
import resource, jax, jax.numpy as jnp, numpy as np, sys
from jaxcurv import FiniteDifference, score_dataset

unit, rng = 1 << 14, np.random.default_rng(0)
params = jax.device_put((rng.normal(size=(5, 3)).astype(np.float32),
                         np.full((1, 32 * 32 * unit), 1e-3, np.float32),
                         np.full((32 * 32 * unit, 3), 1e-9, np.float32)))

def model(params, x):
    # 2 GB between the two products for a batch of 32, and an eighth of it for 16: so great a step
    # that nothing small, such as the compiler, meets the limit.
    wide = len(x) ** 2 * unit
    return x @ params[0] + jnp.sin(x[:, :1] @ params[1][:, :wide]) @ params[2][:wide]

source = [{"image": image, "label": 0, "index": n} for n, image in
          enumerate(rng.normal(size=(20, 5)).astype(np.float32))]
jax.block_until_ready(params)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1800 << 20),) * 2)
table = score_dataset(model, source, key=jax.random.key(0), params=params, batch_size=32,
                      estimators={"curvature": FiniteDifference(probes=1)}, out=sys.argv[1],
                      shard=(0, 1))
print(table.attrs["batch_sizes"][0], len(table))
"""


def test_growth_that_is_killed_again_and_again_leaves_the_same_bytes(tmp_path: Path) -> None:
    """From 20 samples to 64, two shards nearer at each kill; the first table stands meanwhile."""

    def run(out: Path, speed: str, count: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", KILLED, out, speed, str(count)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    out, whole = tmp_path / "scores.parquet", tmp_path / "whole.parquet"
    assert run(out, "fast", 20).wait() == 0
    assert run(whole, "fast", 64).wait() == 0
    first, finished = out.read_bytes(), 5  # shards of 20 samples, which are copied at once
    for _ in range(3):
        process = run(out, "slow", 64)
        while len(list(tmp_path.glob("scores.parquet.parts/0*.parquet"))) < finished + 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = len(list(tmp_path.glob("scores.parquet.parts/0*.parquet")))
        assert finished < 16
        assert out.read_bytes() == first
    assert run(out, "fast", 64).wait() == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "scores.parquet.parts").exists()


def test_four_devices_share_each_batch_and_never_wait_for_each_other(tmp_path: Path) -> None:
    done = on_devices(SEVERAL, 4, tmp_path)
    assert done.returncode == 0, done.stderr
    check_no_program_waits(tmp_path, 4)


def test_many_batches_end_with_the_threads_that_a_user_has() -> None:
    """The suite's other processes have one thread each: here programs share XLA's pool."""
    ours = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS")
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        env={name: value for name, value in os.environ.items() if name not in ours}
        | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # seconds; it takes a few, or waits for ever
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_out_of_memory_goes_on_with_half_the_batch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE, tmp_path / "scores.parquet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["16", "20"]
    assert "out of memory with batches of 32: going on with 16" in done.stderr
    record = tmp_path / "scores.parquet.parts" / "batch-0-of-1.json"
    assert read_json(record) == {"batch_size_a_device": 16}

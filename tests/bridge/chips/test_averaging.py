"""The mean of several reads of a chip, and of several chips."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import bridge
from bridge import PROFILES, Profile
from bridge.chips import ADC, OutputNoise, WeightNoise
from jaxcurv import logit_scores
from tests.refusals import refused

SAMPLES = 3000
PER_MVM = Profile(wnoise=WeightNoise(0.1, drawn="per_mvm"))


def linear(inputs: int = 8, classes: int = 4) -> nn.Module:
    network = nn.Sequential(nn.Linear(inputs, classes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    return network


NETWORK = linear()
X = np.random.default_rng(1).normal(size=8).astype(np.float32)
SAME = (np.tile(X, (SAMPLES, 1)), np.zeros(SAMPLES, int))
"""One input under many indices, each with noise of its own."""
INPUTS = np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
LABELS = np.random.default_rng(3).integers(0, 4, 30)


def logits(table: Any) -> np.ndarray:
    return np.stack(table["logits"])


@pytest.mark.parametrize("reads", [1, 2, 5])
def test_the_variance_of_the_mean_is_that_of_a_read_over_their_number(reads: int) -> None:
    """AIHWKit adds sigma |x|_2 xi to each output, in units of the largest weight."""
    chip = bridge.program(NETWORK, PER_MVM, seed=0)
    found = logits(bridge.predict(chip, SAME, reads=reads, batch_size=1000))
    largest = float(NETWORK[0].weight.abs().max())
    variance = (0.1 * largest) ** 2 * float(X @ X)
    expected = NETWORK(torch.from_numpy(X)).numpy()
    off = np.square(found - expected).mean(0)
    # The mean of n squares of a normal has a relative standard deviation of sqrt(2 / n).
    np.testing.assert_allclose(off, variance / reads, rtol=5 * np.sqrt(2 / SAMPLES))


def test_each_read_has_noise_of_its_own() -> None:
    """Reads of one sample are no more alike than samples; the first is as it always was."""
    chip = bridge.program(NETWORK, PER_MVM, seed=0)
    images, indices = torch.from_numpy(SAME[0]), range(SAMPLES)
    first, second = (chip(images, indices, read) for read in (0, 1))
    assert torch.equal(first, chip(images, indices))
    for one, other in zip(first.T.numpy(), second.T.numpy(), strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(SAMPLES)
    assert torch.equal(second, chip(images, indices, 1))
    torch.testing.assert_close(second[7:9], chip(images[7:9], [7, 8], 1))
    mean = logits(bridge.predict(chip, SAME, reads=2))
    np.testing.assert_allclose(mean, (first + second).numpy() / 2, rtol=1e-6, atol=1e-6)


PROFILES_OF_READS = {
    "pcm": (PROFILES["adc+wnoise+pcm"], "fast"),
    "aihwkit": (Profile(ADC(bits=8)), "aihwkit"),
}


@pytest.mark.parametrize("name", PROFILES_OF_READS)
def test_without_noise_of_operations_reads_are_one_to_the_bit(name: str) -> None:
    profile, engine = PROFILES_OF_READS[name]
    made: Any = bridge.program(NETWORK, profile, seed=0, calibration=INPUTS, engine=engine)
    one, several = (bridge.predict(made, (INPUTS, LABELS), reads=n) for n in (1, 3))
    assert np.array_equal(logits(one), logits(several))
    assert one.drop(columns="logits").equals(several.drop(columns="logits"))


@pytest.mark.parametrize("profile", [PER_MVM, Profile(out_noise=OutputNoise(0.05))])
def test_aihwkit_s_tiles_are_read_anew_too(profile: Profile) -> None:
    chip = bridge.program(NETWORK, profile, seed=0, engine="aihwkit")
    images = torch.from_numpy(INPUTS)
    first, second = (chip(images, range(30), read) for read in (0, 1))
    assert (first != second).all()
    assert torch.equal(second, chip(images, range(30), 1))


def test_a_stored_table_is_of_its_number_of_reads(tmp_path: Path) -> None:
    chip = bridge.program(NETWORK, PER_MVM, seed=0)
    path = tmp_path / "table.parquet"
    made = bridge.predict(chip, (INPUTS, LABELS), out=path, reads=3)
    assert made.attrs["reads"] == 3
    again = bridge.predict(chip, (INPUTS, LABELS), out=path, reads=3)
    assert np.array_equal(logits(again), logits(made))
    for reads in (1, 2):
        with refused("reads are more or fewer"):
            bridge.predict(chip, (INPUTS, LABELS), out=path, reads=reads)
    path.unlink()
    assert "reads" not in bridge.predict(chip, (INPUTS, LABELS), out=path).attrs
    with refused("reads are more or fewer"):
        bridge.predict(chip, (INPUTS, LABELS), out=path, reads=3)


def test_bad_reads_are_refused() -> None:
    chip = bridge.program(NETWORK, PER_MVM, seed=0)
    with refused("reads must be at least 1"):
        bridge.predict(chip, (INPUTS, LABELS), reads=0)
    with refused("a module draws nothing"):
        bridge.predict(NETWORK, (INPUTS, LABELS), reads=2)
    with refused("read must be at least 0"):
        chip(torch.from_numpy(INPUTS), range(30), -1)


def chip_tables(count: int, profile: Profile = PROFILES["wnoise"], **settings: Any) -> list[Any]:
    return [
        bridge.predict(bridge.program(NETWORK, profile, seed=n), (INPUTS, LABELS), **settings)
        for n in range(count)
    ]


def test_the_mean_of_chips() -> None:
    tables = chip_tables(4, PROFILES["pcm"])
    found = bridge.average_logits(tables)
    mean = sum(logits(one).astype(np.float64) for one in tables) / 4
    np.testing.assert_array_equal(logits(found), mean.astype(np.float32))
    np.testing.assert_array_equal(found["prediction"], mean.argmax(1))
    np.testing.assert_array_equal(found["correct"], mean.argmax(1) == LABELS)
    assert found.columns.tolist() == tables[0].columns.tolist()
    assert found.dtypes.tolist() == tables[0].dtypes.tolist()
    assert found["index"].equals(tables[0]["index"])
    # A generator is a list; pandas joins by the rows' labels.
    shuffled = bridge.average_logits(one.sample(frac=1, random_state=0) for one in tables)
    pd.testing.assert_frame_equal(shuffled.sort_index(), found)
    same = bridge.average_logits([tables[0]] * 3)
    assert np.array_equal(logits(same), logits(tables[0]))


def test_the_variance_of_chips_falls_with_their_number() -> None:
    """Weight noise of 60 chips: errors of the mean of 4 have a fourth of their variance."""
    tables = chip_tables(60)
    digital = logits(bridge.predict(NETWORK, (INPUTS, LABELS)))
    groups = [bridge.average_logits(tables[n : n + 4]) for n in range(0, 60, 4)]
    one, four = (
        np.square([logits(table) - digital for table in some]).mean() for some in (tables, groups)
    )
    assert four == pytest.approx(one / 4, rel=0.25)


def test_paths_stay() -> None:
    tables = chip_tables(2)
    for table in tables:
        table.insert(1, "path", [f"{n}.png" for n in range(30)])
    assert bridge.average_logits(tables)["path"].tolist() == tables[0]["path"].tolist()


def test_tables_that_do_not_belong_together_are_refused() -> None:
    first, second = chip_tables(2)
    few = bridge.predict(NETWORK, (INPUTS[:20], LABELS[:20]))
    others = bridge.predict(NETWORK, (INPUTS, (LABELS + 1) % 4))
    wider = bridge.predict(linear(classes=5), (INPUTS, LABELS))
    kept = bridge.predict(NETWORK, (INPUTS, LABELS), keep=logit_scores)
    for tables, message in (
        ([first, few], "table 1 has other samples than table 0, or in another order, by index"),
        ([first, second[::-1]], "in another order, by index"),
        ([first, others], "by label"),
        ([first, wider], "logits of 4 and 5 classes|logits of 5 and 4 classes"),
        ([first, kept], "table 1 has no logits: make it with bridge.predict, without keep"),
        ([first, second.drop(columns="label")], "has no column label"),
        (first, "takes a list of tables of .* got a Frame"),
        (None, "takes a list of tables of .* got a NoneType"),
        ([], "takes a list of tables"),
        ([first, logits(second)], "got Frame, ndarray"),
    ):
        with refused(message):
            bridge.average_logits(tables)

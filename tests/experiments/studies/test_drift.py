"""The sweep over time: the interval over chips by hand, the same chips throughout, resuming."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import bridge
from bridge.chips.tiles import named_tiles
from experiments.chips.in_torch import TorchNetwork
from experiments.cli import commands
from experiments.settings.presets import PRESETS
from experiments.studies import drift
from experiments.studies import exported as exported_run
from experiments.studies.drift import Drift, duration, over_chips
from experiments.studies.exported import Exported
from tests.chips import digits_network
from tests.exported_run import write_exported_digits

FLAGS = ("--drift.chips", "2", "--drift.limit", "30", "--drift.times", "3600", "0")
DIGITS = PRESETS["digits"].experiment


@pytest.fixture(scope="module", autouse=True)
def small_network() -> Iterator[None]:
    """The command reads an exported network, and works on a small one in its place."""
    network = TorchNetwork(digits_network(), "fast", "cpu", None, None)
    read = exported_run.open_exported

    def opened(*arguments: Any, **options: Any) -> Exported:
        return replace(read(*arguments, **options), network=network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported_run, "open_exported", opened)
        patch.setattr(drift, "STUDY", replace(drift.STUDY, open=opened))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of which only the exported weights are left, aged by the command."""
    folder = write_exported_digits(tmp_path_factory.mktemp("run"))
    assert commands.run(["drift", "digits", "--out", str(folder), *FLAGS]) == 0
    return folder


def test_a_folder_that_cannot_be_written_is_told_by_its_flag(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = ("--out", str(folder), "--drift.out", str(tmp_path / "file"))
    assert commands.run(["drift", "digits", *out, *FLAGS]) == 2
    assert "choose another with --drift.out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    return exported_run.open_exported(DIGITS, folder, None, profile="pcm", limit=30)


def rows_of(accuracies: list[float], **columns: Any) -> pd.DataFrame:
    shared = {
        "compensation": "none",
        "time_s": 0.0,
        "samples": 10,
        "digitally_correct": 8,
        "digital_accuracy": 0.8,
        "failure_rate": 0.5,
        **columns,
    }
    return pd.DataFrame(
        [{**shared, "chip": chip, "accuracy": one} for chip, one in enumerate(accuracies)]
    )


# --- the interval


def test_interval_over_three_chips() -> None:
    """0.5, 0.6, 0.7: s = 0.1, and Student's t of 2 degrees of freedom is 4.302653 at 97.5 %."""
    (row,) = over_chips(rows_of([0.7, 0.5, 0.6]), 0.95).to_dict("records")
    half = 4.302653 * 0.1 / 3**0.5
    assert row["accuracy"] == pytest.approx(0.6)
    assert row["accuracy_low"] == pytest.approx(0.6 - half, abs=1e-6)
    assert row["accuracy_high"] == pytest.approx(0.6 + half, abs=1e-6)
    assert (row["accuracy_min"], row["accuracy_max"], row["chips"]) == (0.5, 0.7, 3)
    assert row["failure_rate"] == row["failure_rate_low"] == row["failure_rate_high"] == 0.5


def test_interval_is_cut_to_what_is_possible() -> None:
    (row,) = over_chips(rows_of([0.0, 1.0]), 0.95).to_dict("records")
    assert (row["accuracy_low"], row["accuracy_high"]) == (0.0, 1.0)


def test_one_chip_has_no_interval() -> None:
    (row,) = over_chips(rows_of([0.5]), 0.95).to_dict("records")
    assert row["accuracy"] == 0.5
    assert np.isnan([row["accuracy_low"], row["accuracy_high"]]).all()


def test_groups_do_not_mix() -> None:
    rows = pd.concat(
        [
            rows_of([0.5, 0.7]),
            rows_of([0.1, 0.1], time_s=60.0),
            rows_of([0.9, 0.9], compensation="global"),
        ]
    )
    table = over_chips(rows, 0.95).set_index(["compensation", "time_s"])["accuracy"]
    assert table.to_dict() == {("none", 0.0): 0.6, ("none", 60.0): 0.1, ("global", 0.0): 0.9}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5 s"),
        (20.0, "20 s"),
        (60.0, "1 min"),
        (3600.0, "1 h"),
        (86400.0, "1 d"),
        (2592000.0, "30 d"),
        (31536000.0, "1 y"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- the chips


def test_compensations_have_the_same_chip(exported: Exported) -> None:
    profile = exported.profile
    tiles = []
    for compensation in (None, "global", "per_column"):
        memory = replace(profile.memory, compensation=compensation)
        chip = bridge.program(exported.network.module, replace(profile, memory=memory), seed=3)
        tiles.append(named_tiles(chip.at(3600.0).analog))
    for name, tile in tiles[0].items():
        for other in tiles[1:]:
            assert torch.equal(tile.programmed_weights, other[name].programmed_weights)
            assert torch.equal(tile.tile.get_weights(), other[name].tile.get_weights())


def test_rows_are_those_of_the_chips(folder: Path, exported: Exported) -> None:
    rows = pd.read_parquet(folder / "drift" / "drift.parquet")
    keys = ["compensation", "chip", "time_s"]
    assert rows[keys].to_numpy().tolist() == [
        [compensation, chip, time]
        for chip in (0, 1)
        for compensation in ("none", "global")
        for time in (0.0, 3600.0)
    ]
    digital = bridge.predict(exported.network.module, exported.test)["correct"].to_numpy()
    assert digital.sum() > 10
    memory = bridge.chips.PCM(t_inference=3600.0, compensation="global")
    chip = bridge.program(exported.network.module, bridge.Profile(memory=memory), seed=1)
    analog = bridge.predict(chip, exported.test)["correct"].to_numpy()
    row = rows.set_index(keys).loc[("global", 1, 3600.0)]
    assert row["samples"] == 30
    assert row["digitally_correct"] == digital.sum()
    assert row["digital_accuracy"] == digital.mean()
    assert row["accuracy"] == analog.mean()
    assert row["failures"] == (digital & ~analog).sum() > 0
    assert row["failure_rate"] == row["failures"] / digital.sum()


def test_command_leaves_tables_figure_and_settings(folder: Path) -> None:
    out = folder / "drift"
    table = pd.read_csv(out / "drift.csv")
    assert list(table["time_s"]) == [0.0, 3600.0] * 2
    rows = pd.read_parquet(out / "drift.parquet")
    mean = rows.groupby(["compensation", "time_s"], sort=False)["accuracy"].mean()
    np.testing.assert_allclose(table["accuracy"], mean)
    for name in ("drift.png", "drift.svg"):
        assert (out / name).stat().st_size > 1000
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["seeds"], settings["samples"]) == ([0, 1], 30)
    assert settings["versions"]["aihwkit"]


def test_the_verdict_tells_each_time_without_compensation_and_the_range_with(
    tmp_path: Path,
) -> None:
    accuracy = {"none": [0.99, 0.84, 0.57, 0.11], "global_exact": [0.98, 0.97, 0.96, 0.92]}
    table = pd.DataFrame(
        [
            {"compensation": name, "time_s": time, "accuracy": value}
            for name, values in accuracy.items()
            for time, value in zip((0.0, 20.0, 60.0, 3600.0), values, strict=True)
        ]
    ).assign(chips=3, digital_accuracy=0.978)
    table.to_csv(tmp_path / "drift.csv", index=False)
    assert drift.verdict(tmp_path) == (
        "Accuracy as the chips age: not compensated, 84 % at 20 s, 57 % at 1 min, 11 % at 1 h; "
        "with global exact compensation, 92 to 97 % (mean of 3 chips; digital 98 %)"
    )
    early = table[table["time_s"] == 0]
    early.to_csv(tmp_path / "drift.csv", index=False)
    assert "not compensated, 99 % at 0; with global exact compensation, 98 %" in drift.verdict(
        tmp_path
    )
    (tmp_path / "drift.csv").unlink()
    assert drift.verdict(tmp_path) == ""


# --- resuming


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The folder, for a test to change."""
    return shutil.copytree(folder, tmp_path / "copy")


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "drift" / "pieces").rglob("*.*")}


def test_only_what_is_missing_is_computed(copied: Path) -> None:
    before = stamps(copied)
    assert len(before) == 8
    lost = min(before)
    lost.unlink()
    more = ("--drift.chips", "2", "--drift.limit", "30", "--drift.times", "0", "60", "3600")
    assert commands.run(["drift", "digits", "--out", str(copied), *more]) == 0
    after = stamps(copied)
    assert after.keys() > before.keys()
    assert len(after) == 12
    assert [path for path in before if after[path] != before[path]] == [lost]
    assert len(pd.read_parquet(copied / "drift" / "drift.parquet")) == 12


def test_other_settings_have_pieces_of_their_own(copied: Path) -> None:
    before = stamps(copied)
    flags = ("--drift.chips", "1", "--drift.limit", "30", "--drift.times", "0")
    other = ("--drift.compensations", "none", "--simulate.pcm.mapping.g-min", "1")
    assert commands.run(["drift", "digits", "--out", str(copied), *flags, *other]) == 0
    after = stamps(copied)
    assert len(after) == len(before) + 1
    assert {path: after[path] for path in before} == before
    # The time and the compensation of the simulation are not the sweep's.
    flags = (*flags, *other, "--simulate.pcm.t-inference", "60")
    assert commands.run(["drift", "digits", "--out", str(copied), *flags]) == 0
    assert stamps(copied) == after


def test_interrupted_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, calls = bridge.predict, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return predict(*arguments, **options)

    command = ["drift", "digits", "--out", str(folder), "--drift.out", str(tmp_path), *FLAGS]
    with monkeypatch.context() as patch:
        patch.setattr(bridge, "predict", interrupted)
        assert commands.run(command) == 130
    assert len(list(tmp_path.rglob("pieces/*/*.parquet"))) == 2
    assert not (tmp_path / "drift.parquet").exists()
    assert commands.run(command) == 0
    rows, whole = (pd.read_parquet(path / "drift.parquet") for path in (tmp_path, folder / "drift"))
    pd.testing.assert_frame_equal(rows, whole)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": ()}, "times must differ and be at least one"),
        ({"times": (60, 60.0)}, "times must differ"),
        ({"times": (-1.0,)}, "a time must be finite and >= 0"),
        ({"compensations": ("none", "none")}, "compensations must differ"),
        ({"chips": 0}, "chips and limit must be at least 1"),
        ({"limit": 0}, "chips and limit must be at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drift(**settings)


def test_settings_that_are_one_of_several_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain flags go before and after the choice of the class; all are understood."""
    folder = ("--out", str(tmp_path / "absent"), "--simulate.pcm.compensation", "global")
    pairs = ("--simulate.pcm.mapping", "pairs", "--simulate.pcm.mapping.factors", "1", "4")
    clipping = ("--simulate.clipping.type", "layer_gaussian")
    assert commands.run(["drift", "digits", *folder, *pairs, *clipping]) == 2
    error = capsys.readouterr().err
    assert re.search("no weights.safetensors in .*: run export first", error)
    assert not (tmp_path / "absent").exists()


def test_profile_without_a_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["drift", "digits", "--drift.profile", "adc"]) == 2
    assert "adc+pcm" in capsys.readouterr().err


def test_failure_at_work(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bridge, "program", broken)
    command = ["drift", "digits", "--out", str(folder), "--drift.out", str(tmp_path), *FLAGS]
    assert commands.run(command) == 1
    assert "error: unexpected RuntimeError: out of memory" in capsys.readouterr().err


def test_figure_of_one_time_and_chip(tmp_path: Path) -> None:
    table = over_chips(rows_of([0.5], time_s=100.0), 0.95)
    assert drift.draw(table, tmp_path / "drift.png", "title").stat().st_size > 1000

"""The command `layers` on a folder of exported weights."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bridge.chips.layers import ALL_LAYERS
from experiments.chips.in_torch import TorchNetwork
from experiments.cli import commands
from experiments.settings.presets import PRESETS
from experiments.studies.exported import open_exported
from experiments.studies.layers import Layers, run
from tests.chips import digits_network
from tests.exported_run import write_exported_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported_digits(tmp_path_factory.mktemp("run"))


def test_command_on_a_folder_of_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--layers.limit", "10", "--layers.images", "8", "--simulate.adc-calibration", "8")
    assert commands.run(["layers", "digits", "--out", str(folder), *flags]) == 0
    table = pd.read_parquet(folder / "layers" / "layers.parquet")
    assert len(table) == 22
    assert table["layer"].iloc[0] == "conv1"
    assert list(table["layer"].iloc[-2:]) == ["fc", ALL_LAYERS]
    assert table["tiles"].iloc[-1] == 21
    assert table[["snr_db", "own_snr_db", "clipped_share"]].iloc[:-1].notna().all(axis=None)
    assert set(table["samples"]) == {10}
    written = pd.read_csv(folder / "layers" / "layers.csv")
    assert list(written.columns) == list(table.columns)
    for name in ("layers.png", "layers.svg", "settings.json"):
        assert (folder / "layers" / name).stat().st_size > 500
    assert "layer4.1.conv2" in capsys.readouterr().out


def test_a_chip_without_errors_is_drawn(folder: Path, tmp_path: Path) -> None:
    experiment, settings = PRESETS["digits"].experiment, Layers(profile="ideal", limit=5)
    exported = open_exported(experiment, folder, None, profile="ideal", limit=5)
    network = TorchNetwork(digits_network(), "fast", "cpu", None, None)
    run(replace(exported, network=network), experiment, settings, tmp_path)
    assert set(pd.read_csv(tmp_path / "layers.csv")["failures"]) == {0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no weights.safetensors in .*: run export first"),
        (("--simulate.device", "cuda:99"), "CUDA devices, not cuda:99"),
    ],
)
def test_command_that_cannot_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert commands.run(["layers", "digits", "--out", str(tmp_path / "absent"), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error:")
    assert re.search(message, captured.err)
    assert not (tmp_path / "absent").exists()

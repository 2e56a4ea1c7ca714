"""Old names on a command line are understood, and the new ones said."""

import pytest

from experiments.cli import commands
from experiments.cli.words import with_current_words


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "run digits --simulate.calibration 16",
            "run digits --simulate.adc-calibration 16",
            ["--simulate.calibration is now called --simulate.adc-calibration"],
        ),
        (
            "run digits simulate.pcm.converter:mapped-pairs --simulate.pcm.converter.g_min=1",
            "run digits --simulate.pcm.mapping mapped_pairs --simulate.pcm.mapping.g-min=1",
            [
                "simulate.pcm.converter:mapped-pairs is now called --simulate.pcm.mapping "
                "mapped_pairs",
                "--simulate.pcm.converter.g_min is now called --simulate.pcm.mapping.g-min",
            ],
        ),
        (
            "agreement digits --agreement.batch_size 8 --agreement.out x",
            "rank-correlation digits --rank-correlation.batch-size 8 --rank-correlation.out x",
            [
                "agreement is now called rank-correlation",
                "--agreement.batch_size is now called --rank-correlation.batch-size",
                "--agreement.out is now called --rank-correlation.out",
            ],
        ),
        *(
            (
                f"run digits {old} --limit 5",
                "run digits --limit 5",
                [
                    "--flip.programmings is gone, and left out: mean and variance of programmed "
                    "weights are computed, no chip is sampled"
                ],
            )
            for old in ("--flip.programmings 4", "--flip.programmings=4")
        ),
        ("run digits --data.image_size 8 --limit 5", None, []),
    ],
)
def test_old_words(old: str, new: str | None, said: list[str]) -> None:
    notes: list[str] = []
    words = with_current_words(old.split(), notes.append)
    assert words == (new or old).split()
    assert notes == [f"note: {one}" for one in said]


def test_old_names_work(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = "simulate.pcm.converter:pairs --simulate.pcm.converter.factors 1 4"
    line = f"run digits {pairs} --simulate.calibration 16 --dry-run"
    assert commands.run(line.split()) == 0
    assert capsys.readouterr().err.count("is now called") == 3
    assert commands.run(["agreement", "digits", "--agreement.limit", "2"]) == 2
    said = capsys.readouterr().err
    assert "note: agreement is now called rank-correlation\n" in said
    assert "error: --rank-correlation.limit must be at least 3" in said


def test_results_under_an_old_name_are_pointed_at(
    run_copy, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_copy / "agreement").mkdir()
    assert commands.run(["rank-correlation", "digits", "--out", str(run_copy), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert f"{run_copy / 'agreement'} has the results of an earlier version: rename it" in said

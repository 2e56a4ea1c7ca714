"""The whole path on digits, over the command line."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

import bridge
from bridge.chips.profiles import to_json
from bridge.report.figure_files import BESIDE, caption_of
from bridge.report.page.pictures import KINDS, read_picture
from experiments.cli import commands
from experiments.paper import fit, reproduce
from experiments.pipeline import runner
from experiments.pipeline.registry import STAGES
from experiments.runs import job
from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import sha256
from experiments.runs.job import Job
from experiments.runs.networks import build_flax, require_classes
from experiments.settings.flags import Experiment, Figures
from experiments.settings.presets import PRESETS
from experiments.stages import train
from experiments.stages.analyse import ANALYSED
from experiments.stages.report import commands_of_page
from experiments.studies import remedies
from experiments.studies.drift import is_of_run
from experiments.system.errors import StageFailed
from jaxcurv import data
from jaxcurv.storage.checksums import read_json, write_json
from jaxcurv.storage.lock import lock
from tests.conftest import SMALL, Command
from tests.one_process import stages_in_this_process, succeed
from tests.terminal import Terminal, lines_of


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process; its stages have theirs."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = commands.run(list(map(str, arguments)))
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


def test_run_leaves_every_result(finished_run: Path) -> None:
    said = (finished_run.parent / "said.txt").read_text()
    assert "Analog-only failures by curvature decile" in said
    headline = "adc+wnoise+pcm_gdc"
    assert re.search(rf"Under {re.escape(headline)} at t = 20 s, .* of D1 and .* of D10", said)
    table = pd.read_csv(finished_run / "table_one.csv").query("fold == 'test'")
    table = table.set_index("profile")
    full = table.loc[headline]
    said_at_once = " ".join(said.split())
    assert f"The digital model is right on {full['digital_accuracy']:.1f} % of the test" in said
    assert f"chips under {headline} on {full['analog_accuracy']:.1f} %." in said_at_once
    paper = table.loc["adc+wnoise+pcm"]
    assert (
        "Under adc+wnoise+pcm (the paper's, drift not compensated) the chips are right on "
        f"{paper['analog_accuracy']:.1f} %, and D1, D10 fail: {paper['d1_of_all']:.1f}, "
        f"{paper['d10_of_all']:.1f} % of all"
    ) in said_at_once
    page = (finished_run / "report.html").read_text()
    assert "(the paper&#39;s, drift not compensated)" in page
    scores = pd.read_parquet(finished_run / "scores.parquet")
    assert scores["fold"].value_counts().to_dict() == {"train": 60, "validation": 60, "test": 60}
    assert not scores.duplicated(["fold", "index"]).any()
    assert (scores["curvature"] > 0).all()
    assert scores["correct"].mean() > 0.3  # a guess would be right in a tenth

    predictions = pd.read_parquet(finished_run / "predictions.parquet")
    profiles = PRESETS["digits"].experiment.simulate.profiles
    assert list(predictions["profile"].unique()) == [*profiles]
    assert len(predictions) == len(scores) * len(profiles)

    deciles = pd.read_csv(finished_run / "deciles.csv")
    assert set(deciles["fold"]) == {"train", "validation", "test", "pooled"}
    first = deciles[(deciles["fold"] == "test") & (deciles["profile"] == "ideal")]
    assert list(first["decile"]) == list(range(1, 11))
    assert list(first["samples"]) == [6] * 10

    flips = pd.read_parquet(finished_run / "flips.parquet")
    assert len(flips) == len(scores) * (len(profiles) - 1)
    assert flips["probability"].between(0, 1).all()
    both = flips.merge(scores, on=["fold", "index"], suffixes=("", "_scored"))
    np.testing.assert_allclose(both["margin"], both["margin_scored"], rtol=1e-3, atol=1e-4)
    spread = flips.groupby("profile")["variance"].mean()
    assert 0 < spread["adc"] < spread["wnoise"] < spread["adc+wnoise"] < spread["adc+wnoise+pcm"]

    for name in ANALYSED:
        assert (finished_run / f"{name}.parquet").exists()
        assert (finished_run / f"{name}.csv").exists()
    drawn = ("figure_one", "predictors", "calibration", "routing", "gallery", "score_histogram")
    for name in (*drawn, "training_curve"):
        assert (finished_run / "figures" / f"{name}.png").stat().st_size > 1000
    assert "<html" in (finished_run / "report.html").read_text()
    assert not (finished_run / "flips").exists()  # unfinished work of no more use
    settings = json.loads((finished_run / "settings.json").read_text())
    assert settings["model"]["width"] == 4
    assert settings["simulate"]["pcm"]["t_inference"] == 20.0


def test_ideal_chip_predicts_as_the_digital_model(finished_run: Path) -> None:
    scores = pd.read_parquet(finished_run / "scores.parquet")
    predictions = pd.read_parquet(finished_run / "predictions.parquet")
    ideal = predictions[predictions["profile"] == "ideal"]
    both = scores.merge(ideal, on=["fold", "index"], suffixes=("_digital", "_analog"))
    assert len(both) == len(scores)
    assert (both["prediction_digital"] == both["prediction_analog"]).all()


def test_failures_of_the_table_are_those_of_the_samples(finished_run: Path) -> None:
    scores = pd.read_parquet(finished_run / "scores.parquet").set_index(["fold", "index"])
    predictions = pd.read_parquet(finished_run / "predictions.parquet")
    deciles = pd.read_parquet(finished_run / "deciles.parquet")
    full = predictions[predictions["profile"] == "adc+wnoise+pcm"].set_index(["fold", "index"])
    failed = scores["correct"] & ~full["correct"].reindex(scores.index)
    test = scores.loc["test"].sort_values(["curvature", "index"]).index
    expected = [int(failed.loc["test"].loc[part].sum()) for part in np.array_split(test, 10)]
    rows = deciles[(deciles["fold"] == "test") & (deciles["profile"] == "adc+wnoise+pcm")]
    assert list(rows["failures"]) == expected


def test_predictors_are_scikit_learns_of_the_stored_tables(finished_run: Path) -> None:
    """AUROC and calibration error once more, from the files alone."""
    scores = pd.read_parquet(finished_run / "scores.parquet").query("fold == 'test' and correct")
    predictions = pd.read_parquet(finished_run / "predictions.parquet")
    full = predictions.query("profile == 'adc+wnoise+pcm' and fold == 'test'").set_index("index")
    failed = ~full["correct"].loc[scores["index"]].to_numpy()
    flips = pd.read_parquet(finished_run / "flips.parquet")
    flips = flips.query("profile == 'adc+wnoise+pcm' and fold == 'test'").set_index("index")
    probability = flips["probability"].loc[scores["index"]].to_numpy()
    table = pd.read_parquet(finished_run / "predictors.parquet")
    table = table.query(
        "profile == 'adc+wnoise+pcm' and fold == 'test' and denominator == 'correct'"
    ).set_index("predictor")
    for name, score in {
        "curvature": scores["curvature"],
        "gradient_norm": scores["gradient_norm"],
        "margin": -scores["label_margin"],
        "flip_probability": probability,
    }.items():
        assert table.loc[name, "auroc"] == pytest.approx(roc_auc_score(failed, score), abs=1e-6)
    ours = pd.read_parquet(finished_run / "calibration_errors.parquet").query(
        "profile == 'adc+wnoise+pcm' and fold == 'test' and predictor == 'flip_probability'"
    )
    bins = np.clip(np.ceil(10 * probability).astype(int), 1, 10)
    expected = sum(
        abs(failed[bins == b].mean() - probability[bins == b].mean()) * (bins == b).mean()
        for b in set(bins)
    )
    assert ours["expected_calibration_error"].iloc[0] == pytest.approx(expected)


def test_scores_without_labels_take_the_prediction(finished_run: Path) -> None:
    scores = pd.read_parquet(finished_run / "scores.parquet")
    right, wrong = scores[scores["correct"]], scores[~scores["correct"]]
    assert len(wrong) > 10
    for name in ("curvature", "gradient_norm", "loss", "el2n"):
        assert (right[f"{name}_label_free"] == right[name]).all()
    # The loss of the prediction is minus the logarithm of its probability.
    np.testing.assert_allclose(
        wrong["loss_label_free"], -np.log1p(-wrong["least_confidence"]), rtol=1e-4
    )
    assert (wrong["loss_label_free"] < wrong["loss"]).all()


def test_table_one_figure_one_and_gallery_of_a_finished_run(
    here: Command, finished_run: Path, tmp_path: Path
) -> None:
    result = here("table-one", finished_run, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith("digits, test correct"))
    assert lines[first - 1].startswith("resnet18, width 4 all ")
    assert lines[first + 1] == finished_run.name
    table = pd.read_csv(tmp_path / "table_one.csv")
    stored = pd.read_csv(finished_run / "table_one.csv").query("profile == 'adc+wnoise+pcm'")
    np.testing.assert_array_equal(table["d10_of_correct"], stored["d10_of_correct"])
    for arguments in (
        ("figure-one", finished_run, "--denominator", "correct"),
        ("gallery", finished_run, "--fold", "train", "--count", "3"),
    ):
        result = here(*arguments, "--out", tmp_path)
        assert result.returncode == 0, result.stderr
    gallery = pd.read_csv(tmp_path / "gallery.csv")
    assert (gallery["fold"].unique().tolist(), len(gallery)) == (["train"], 6)
    for name in ("table_one", "figure_one_correct", "gallery"):
        assert {path.suffix for path in tmp_path.glob(f"{name}.*")} == {".png", *BESIDE}


def test_figures_have_the_width_and_the_profiles_that_are_asked_for(
    here: Command, finished_run: Path, tmp_path: Path
) -> None:
    some = ("--figures.width", "single", "--figures.profiles", "pcm", "adc+wnoise+pcm")
    assert here("figure-one", finished_run, *some, "--out", tmp_path).returncode == 0
    table = pd.read_csv(tmp_path / "figure_one.csv")
    assert table["profile"].unique().tolist() == ["pcm", "adc+wnoise+pcm"]
    with Image.open(tmp_path / "figure_one.png") as image:
        assert image.width == 3.5 * 200
    result = here("figure-one", finished_run, "--figures.profiles", "adc_coarse")
    one_line_error(result, "has no chips under adc_coarse (--figures.profiles): it has those of")
    result = here("figure-one", finished_run, "--figures.width", "triple")
    one_line_error(result, "--figures.width cannot be 'triple': give one of single, double")
    result = here("report", "digits", "--figures.profiles", "adc_coarse", "--out", finished_run)
    one_line_error(result, "--figures.profiles has adc_coarse, which is not simulated: give some")


def test_the_page_s_commands_draw_its_figures(tmp_path: Path) -> None:
    figures = Figures("single", ("pcm", "adc+wnoise+pcm"))
    found = commands_of_page(Job(Experiment(figures=figures), tmp_path, None))
    flags = " --figures.width single --figures.profiles pcm adc+wnoise+pcm"
    drawn = f"python -m experiments figure-one DIR{flags}"
    assert found["figure_one.png"] == drawn
    assert found["figure_one_correct.png"] == f"{drawn} --denominator correct"
    assert found["gallery.png"].endswith(" --profile adc+wnoise+pcm --figures.width single")
    every = commands_of_page(Job(Experiment(), tmp_path, None))
    assert every["figure_one.png"] == "python -m experiments figure-one DIR"


def test_every_figure_has_one_caption_its_own_or_the_page_s(finished_run: Path) -> None:
    drawn = [*(finished_run / "figures").glob("*.png")]
    assert {path.stem for path in drawn} >= {"figure_one", "predictors", "training_curve"}
    for path in drawn:
        (kind,) = (kind for kind in KINDS if path.stem.startswith(kind))
        own, of_page = caption_of(path), KINDS[kind][1]
        assert bool(own) != bool(of_page), path.stem
        assert read_picture(path, None).caption == own + of_page


def test_the_page_links_to_files_that_are_there(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    links = re.findall(r'<a href="([^"#][^"]*)" download="([^"]+)">(\w+)</a>', page)
    beside = [href for href, _, _ in links if not href.startswith("data:")]
    assert {Path(href).suffix for href in beside} == {".svg", ".pdf", ".csv"}
    for href in beside:
        assert (finished_run / href).is_file(), href
    drawn = {path.stem for path in (finished_run / "figures").glob("*.png")}
    assert {Path(href).stem for href in beside} == drawn >= {"verdict", "figure_one", "gallery"}
    assert "<code>python -m experiments figure-one DIR</code>" in page
    assert "<code>python -m experiments analyse digits --out DIR</code>" in page


def test_paper_outputs_say_what_is_missing(
    here: Command, finished_run: Path, tmp_path: Path
) -> None:
    one_line_error(here("table-one", tmp_path), "no table_one.parquet in", "such as runs/digits")
    one_line_error(here("figure-one", tmp_path), "no deciles.parquet in")
    result = here("gallery", finished_run, "--count", "40", "--out", tmp_path)
    one_line_error(result, "cannot show 40 of each end of the 60 test samples")
    result = here("gallery", finished_run, "--profile", "none", "--out", tmp_path)
    one_line_error(result, "no predictions of none")


def test_a_run_into_a_file_tells_a_line_a_stage(finished_run: Path) -> None:
    told = (finished_run.parent / "told.txt").read_bytes()
    assert b"\r" not in told
    assert b"\x1b" not in told
    lines = [line for line in told.decode().splitlines() if " left" not in line]  # at 30 s
    assert [line.partition(":")[0] for line in lines] == list(STAGES)
    told_of = {name: line.partition(": ")[2] for name, line in zip(STAGES, lines, strict=True)}
    wrong = int((~pd.read_parquet(finished_run / "scores.parquet")["correct"]).sum())
    for name, counted in {
        "score": f"{180 + wrong} images, ",
        "moments": "105 layers and 180 images, ",
        "flips": "1,080 images, ",
        "simulate": "1,440 images, ",
    }.items():
        assert told_of[name].startswith(counted)
    assert re.fullmatch(r"1,440 images, .* s, [\d.,]+ images/s", told_of["simulate"])
    assert re.fullmatch(r"[\d.]+ s|.* min .*", told_of["analyse"])


def test_a_stage_on_a_terminal_draws_over_one_line(run_copy: Path) -> None:
    (run_copy / "stages" / "score.json").unlink()
    shutil.rmtree(run_copy / "scores")
    with stages_in_this_process(), contextlib.redirect_stderr(Terminal()) as terminal:
        assert commands.run(["score", "digits", *SMALL, "--out", str(run_copy)]) == 0
    drawn = terminal.getvalue()
    assert drawn.count("\n") == 1
    assert {"score ...", "score: 100%"} <= {text[:11].rstrip() for text in drawn.split("\r")}
    (line,) = lines_of(drawn)
    assert re.fullmatch(r"score: \d+ images, .* s, [\d.,]+ images/s", line)


def test_a_larger_limit_scores_only_the_new_samples(
    finished_run: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another number of devices, too: the finished run's processes had one a core."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    before = pd.read_parquet(finished_run / "scores.parquet")
    _, said = succeed("score", "digits", *SMALL, "--limit", "64", "--out", run_copy)
    wrong = (~before["correct"]).sum()
    (found,) = re.findall(r"score: \d+ images \((\d+) from before\)", said)
    assert int(found) == len(before) + wrong
    after = pd.read_parquet(run_copy / "scores.parquet")
    assert after["fold"].value_counts().to_dict() == {"train": 64, "validation": 64, "test": 64}
    old = before[["fold", "index"]].merge(after, on=["fold", "index"], how="left")
    pd.testing.assert_frame_equal(old, before, check_exact=True)


def test_second_run_does_nothing_again(here: Command, run_copy: Path) -> None:
    settings = run_copy / "settings.json"
    kept = settings.read_bytes()
    settings.unlink()  # as in a run that was killed; the stages' records have them, too
    before = {path: path.stat().st_mtime_ns for path in run_copy.glob("*.parquet")}
    result = here("run", "digits", "--out", run_copy)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if line] == [
        f"{name}: up to date" for name in STAGES
    ]
    assert {path: path.stat().st_mtime_ns for path in run_copy.glob("*.parquet")} == before
    assert settings.read_bytes() == kept


def test_a_run_recorded_before_some_data_settings_counts(here: Command, run_copy: Path) -> None:
    for path in (run_copy / "stages").glob("*.json"):
        record = read_json(path)
        for name in ("resize_size", "interpolation", "mean", "std"):
            record["settings"].get("data", {}).pop(name, None)
        write_json(path, record)
    result = here("run", "digits", *SMALL, "--out", run_copy)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(": up to date") == len(STAGES)


def test_training_takes_the_given_normalisation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = []
    monkeypatch.setattr(
        "jaxcurv.training.loop.fit", lambda *arguments, **_: given.append(arguments[3]) or []
    )
    settings = replace(Experiment().data, mean=(0.5,), std=(0.25,))
    train.train(job.Job(Experiment(data=settings), tmp_path, None, "none"))
    assert given == [data.Normalisation((0.5,), (0.25,))]
    description = read_json(tmp_path / "model.json")
    assert read_normalisation(description) == given[0]
    colour = replace(settings, mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(ValueError, match="have 1 channels, but the normalisation has 3"):
        train.train(job.Job(Experiment(data=colour), tmp_path, None, "none"))


def add_drift_figure(run: Path, **device: float) -> None:
    """A figure as the command `drift` leaves it, of the run's chips or of another device's."""
    pcm = replace(Experiment().simulate.pcm, compensation=None, t_inference=0.0, **device)
    made = {
        "weights_sha256": sha256(run / "weights.safetensors"),
        "profile": to_json(bridge.chips.eight_profiles(memory=pcm)["pcm"]),
    }
    write_json(run / "drift" / "settings.json", made)
    shutil.copy(run / "figures" / "figure_one.png", run / "drift" / "drift.png")


def test_a_drift_figure_of_other_chips_is_not_the_run_s(run_copy: Path) -> None:
    run = Job(Experiment(), run_copy, None), read_description(run_copy)
    assert not is_of_run(*run)
    add_drift_figure(run_copy)
    assert is_of_run(*run)
    add_drift_figure(run_copy, programming_noise=5.0)
    assert not is_of_run(*run)


def test_remedies_are_shown_beside_their_own_network_and_devices(run_copy: Path) -> None:
    run = Job(Experiment(), run_copy, None), read_description(run_copy)
    assert not remedies.is_of_run(*run)
    made = {
        "weights_sha256": sha256(run_copy / "weights.safetensors"),
        "engine": "fast",
        "stream": None,
        "profile_name": "pcm",
        "profile": to_json(Experiment().simulate.every_profile["pcm"]),
    }
    write_json(run_copy / "remedies" / "settings.json", made)
    shutil.copy(run_copy / "figures" / "figure_one.png", run_copy / "remedies" / "remedies.png")
    assert remedies.is_of_run(*run)
    memory = bridge.chips.PCM(programming_noise=5.0)
    worn = to_json(bridge.chips.eight_profiles(memory=memory)["pcm"])
    for other in ({"weights_sha256": "other"}, {"profile": worn}, {"stream": "other"}):
        write_json(run_copy / "remedies" / "settings.json", made | other)
        assert not remedies.is_of_run(*run)


def test_changed_setting_reruns_what_depends_on_it(finished_run: Path, run_copy: Path) -> None:
    """And no other setting does: none of those that the run was made with is given again."""
    add_drift_figure(run_copy)
    _, said = succeed("run", "digits", "--out", run_copy, "--analyse.bins", "6")
    lines = said.splitlines()
    assert lines[0] == f"{run_copy} changes: --analyse.bins 10 -> 6"
    planned = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert re.search(r"--analyse.bins was 10, is 6 \(took .* s last time\)", planned["analyse"])
    assert planned["report"].split()[1] == "--analyse.bins"
    for name in ("train", "score", "export", "moments", "flips", "simulate"):
        assert planned[name].endswith("up to date")
        assert f"{name}: up to date" in said
    assert set(pd.read_parquet(run_copy / "deciles.parquet")["decile"]) == set(range(1, 7))
    before, after = (read_json(run / "settings.json") for run in (finished_run, run_copy))
    assert after == before | {"analyse": before["analyse"] | {"bins": 6}}
    before, after = ((path / "report.html").read_text() for path in (finished_run, run_copy))
    assert ["analyse.bins</th><td>6</td>" in page for page in (before, after)] == [False, True]
    drift = "Not measured. <code>python -m experiments drift digits --out DIR</code>"
    assert [drift in page for page in (before, after)] == [True, False]
    assert after.count("<figure") == before.count("<figure") + 1


def test_a_drift_figure_alone_has_the_report_made_again(
    here: Command, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(runner, "_exit_code_of", lambda name, *_: ran.append(name) or 0)
    add_drift_figure(run_copy)
    assert here("run", "digits", *SMALL, "--out", run_copy).returncode == 0
    assert ran == ["report"]


def test_tampered_result_is_noticed(here: Command, run_copy: Path) -> None:
    scores = pd.read_parquet(run_copy / "scores.parquet")
    scores.assign(curvature=1.0).to_parquet(run_copy / "scores.parquet")
    result = here("analyse", "digits", *SMALL, "--out", run_copy)
    assert result.returncode == 2
    assert "scores.parquet is not as score wrote it: run score again" in result.stderr


@pytest.mark.parametrize(
    ("stage", "flag", "value"),
    [
        ("score", "--data.split-seed", "5"),
        ("simulate", "--data.validation-fraction", "0.2"),
        ("analyse", "--simulate.wnoise.sigma", "0.5"),
        ("export", "--train.epochs", "2"),
        ("report", "--simulate.pcm.t-inference", "60"),
    ],
)
def test_stage_alone_refuses_settings_other_than_those_before_it(
    here: Command, run_copy: Path, stage: str, flag: str, value: str
) -> None:
    before = sha256(run_copy)
    result = here(stage, "digits", *SMALL, flag, value, "--out", run_copy)
    one_line_error(result, "was run with other flags (--", "give them as they were, or run")
    assert sha256(run_copy) == before


def test_weights_file_says_what_it_is(finished_run: Path) -> None:
    state_dict, header = bridge.weights.load_weights(finished_run / "weights.safetensors")
    assert header["architecture"] == "resnet18"
    assert header["class_names"] == [str(digit) for digit in range(10)]
    assert header["logits_relative_error"] < 1e-4
    assert header["checkpoint_sha256"] == sha256(finished_run / header["checkpoint"])
    twin = bridge.weights.resnet18(10, stem="cifar", width=4, in_channels=1)
    twin.load_state_dict(state_dict)


def test_presets_lists_every_preset(here: Command) -> None:
    result = here("presets")
    assert result.returncode == 0
    assert all(name in result.stdout for name in PRESETS)


def one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Non-zero exit and one line that holds the words; no traceback."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]


def test_unknown_preset(here: Command) -> None:
    one_line_error(here("run", "cifar1000"), "unknown preset 'cifar1000'", "cifar100_resnet18")


@pytest.mark.parametrize("name", ["run", "compare-noise", "drift", "benchmark"])
def test_help_without_a_preset(here: Command, name: str) -> None:
    result = here(name, "--help")
    assert result.returncode == 0
    assert f"Usage: python -m experiments {name} " in result.stdout


def test_unknown_command(here: Command) -> None:
    one_line_error(here("trian", "digits"), "unknown command 'trian'", "train")


def test_missing_data_keeps_earlier_results(here: Command, run_copy: Path) -> None:
    before = sha256(run_copy)
    result = here("train", "digits", "--data.name", "nowhere", "--out", run_copy)
    one_line_error(result, "nowhere", "there is")
    settings = run_copy / "settings.json"
    assert sha256(run_copy) == before, settings.read_text()


def test_limit_below_ten_samples(here: Command, tmp_path: Path) -> None:
    result = here("run", "digits", "--limit", "9", "--out", tmp_path / "out")
    one_line_error(result, "limit of 9", "--limit 10")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--simulate.pcm.t-inference", "-1", ">= 0"),
        ("--simulate.adc.bits", "1", "bits"),
        ("--score.estimator.step", "0", "step must be"),
        ("--score.estimator.probes", "0", "probes must be"),
        ("--train.epochs", "0", "at least 1 epoch"),
        ("--train.warmup-epochs", "-1", "--train.warmup-epochs must be"),
        ("--score.batch-size", "0", "--score.batch-size must be"),
        ("--analyse.confidence", "95", "confidence must lie"),
        ("--data.validation-fraction", "0", "--data.validation-fraction must lie"),
        ("--data.resize-size", "9", "need an image size"),
        ("--data.mean", "0.5", "give both or neither"),
        ("--seed", "-1", "seed must not be negative"),
        ("--simulate.device", "gpu", "device must be cpu, cuda or cuda:N"),
        ("--simulate.device", "cuda:99", "CUDA devices, not cuda:99"),
    ],
)
def test_bad_setting_is_refused_before_work(
    here: Command, tmp_path: Path, flag: str, value: str, words: str
) -> None:
    result = here("run", "digits", flag, value, "--out", tmp_path / "out")
    assert result.returncode == 2
    one_line_error(result, words)
    assert not (tmp_path / "out").exists()


def test_output_folder_that_cannot_be_written(here: Command, tmp_path: Path) -> None:
    # Root may write into folders of mode 0555, but not into the kernel's.
    folder = Path("/sys/kernel/out") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o555)
    result = here("run", "digits", "--out", folder)
    one_line_error(result, "cannot write to the output folder", "--out")


def test_stage_whose_inputs_are_missing(here: Command, tmp_path: Path) -> None:
    result = here("simulate", "digits", "--out", tmp_path / "out")
    one_line_error(result, "simulate needs the results of train", "run train first")
    assert not (tmp_path / "out").exists()


def test_mismatched_labels(finished_run: Path) -> None:
    description = read_json(finished_run / "model.json")
    digits = data.load("digits")
    require_classes(digits, description)
    other = replace(digits, class_names=(*digits.class_names[:9], "nine"))
    with pytest.raises(ValueError, match="mismatched labels: the model knows 10 classes"):
        require_classes(other, description)


def test_command_line_needs_neither_jax_nor_torch() -> None:
    code = (
        "import sys, experiments.cli.commands, experiments.settings.presets;"
        "sys.exit(any(name in sys.modules for name in ('jax', 'torch', 'aihwkit')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], {"numpy", "rich", "tqdm", "experiments.settings.flags"}),
        (["--version"], {"numpy", "rich", "tqdm", "experiments.settings.flags"}),
        (["presets"], {"scipy", "sklearn"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_printed_at_once_imports_little(arguments: list[str], without: set[str]) -> None:
    line = [sys.executable, "-X", "importtime", "-m", "experiments", *arguments]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", result.stderr, re.MULTILINE))
    assert "experiments.cli.commands" in imported
    assert not imported & (without | {"pandas", "pyarrow", "PIL", "jax", "flax", "torch"})


def test_the_version_is_the_package_s(command: Command) -> None:
    result = command("--version")
    assert (result.returncode, result.stdout) == (0, f"jaxcurv {version('jaxcurv')}\n")


@pytest.mark.usefixtures("as_preset")
def test_a_fit_refuses_what_is_not_one_finished_run_of_the_preset(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="python -m experiments run digits"):
        fit.require_finished("digits", tmp_path)
    fit.require_finished("digits", finished_run)
    folder = tmp_path / "digits"
    shutil.copytree(finished_run, folder)
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.assign(curvature=0.0).to_parquet(folder / "scores.parquet")
    with pytest.raises(ValueError, match="not as score wrote it"):
        fit.require_finished("digits", folder)
    digits = PRESETS["digits"]
    other = replace(digits.experiment, seed=1)
    monkeypatch.setitem(PRESETS, "digits", replace(digits, experiment=other))
    with pytest.raises(ValueError, match="made with another seed than the preset's"):
        fit.require_finished("digits", finished_run)


@pytest.mark.usefixtures("as_preset")
def test_a_fit_s_chips_are_those_of_the_preset_s_label(finished_run: Path) -> None:
    options = fit.FitPaper(fit=("cifar10_resnet18_small",), predict=(), runs=finished_run.parent)
    one = fit.open_run("digits", options, {})
    assert one.origin["stream"] == "digits"
    profile = bridge.PROFILES["wnoise"]
    seed = one.experiment.seed
    found = fit._simulate(one, profile, 1, 1.0)
    for label, same in (("digits", True), (None, False)):
        module = one.network.module
        chip = bridge.program(module, profile, seed=seed, stream=label)
        right = [
            bridge.predict(chip, data.Normalised(samples, one.normalisation))["correct"]
            for samples in one.samples.values()
        ]
        assert (np.concatenate(right) == found["0"]).all() is np.bool_(same)


def test_rows_with_data_are_run_and_the_others_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, said, tabled = [], [], []
    small, deep = "cifar10_resnet18_small", "cifar10_resnet50_small"
    fails: set[str] = set()

    def answer(line: list[str]) -> int:
        ran.append(line[3:])
        return int(line[3] in fails)

    def load(name: str, *_: object) -> None:
        if name != "cifar10":
            raise FileNotFoundError(f"no {name}")

    monkeypatch.setattr(reproduce, "call", answer)
    monkeypatch.setattr(
        reproduce, "table_one", lambda options: tabled.append([run.name for run in options.runs])
    )
    monkeypatch.setattr(data, "load", load)
    options = reproduce.Reproduce(data_dir=tmp_path, runs=tmp_path / "runs")
    reproduce.reproduce(options, said.append)
    assert [line[:2] for line in ran[:-1]] == [["run", small], ["rescore", small], ["run", deep]]
    assert ran[-1][:6] == ["fit-paper", "--fit", small, "--predict", deep, "--device"]
    assert all(line[-2:] == ["--data-dir", str(tmp_path)] for line in ran)
    for line in (ran[0], ran[2]):  # each row has chips of its own
        assert line[line.index("--simulate.stream") + 1] == line[1]
    assert tabled == [[small, deep]]
    left_out = [line for line in said if line.startswith("left out")]
    assert left_out == ["left out: cifar100_resnet18_small, cifar100_resnet50_small: no cifar100"]

    # One row fails: the other is run all the same, and the failure is the command's.
    before = len(ran)
    fails.add("rescore")
    with pytest.raises(StageFailed):
        reproduce.reproduce(options, said.append)
    assert tabled[1:] == [[deep]]
    assert small in said[-1]
    assert not any(line[0] == "fit-paper" for line in ran[before:])  # on fewer rows, another fit


@pytest.mark.parametrize("drawing", ["figure-one", "gallery"])
def test_a_run_in_use_is_not_drawn_into(
    run_copy: Path, drawing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock(run_copy):
        assert commands.run([drawing, str(run_copy)]) == 2
    assert f"error: {run_copy} is in use by process" in capsys.readouterr().err


def test_a_command_of_reproduce_gives_its_exit_code() -> None:
    assert reproduce.call([sys.executable, "-c", "raise SystemExit(3)"]) == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fit": ("digits",)}, "no row for digits"),
        ({"fit": ("nothing",)}, "unknown preset 'nothing'"),
        ({"fit": ()}, "one preset at least"),
        ({"predict": ("cifar10_resnet18_small",)}, "cifar10_resnet18_small stands twice"),
        ({"chips": 0}, "must be at least 1"),
        ({"share": 0.0}, "--share must be in"),
        ({"device": "tpu"}, "device must be cpu"),
    ],
)
def test_a_fit_refuses_what_it_cannot_do(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit.FitPaper(**settings)


def test_margin_plus_shift_is_the_margin_at_the_mean_weights(finished_run: Path) -> None:
    """Margin of the digital prediction; here the mean weights are put in by hand."""
    state_dict, header = bridge.weights.load_weights(finished_run / "weights.safetensors")
    moments = load_file(finished_run / "moments.safetensors")
    model = bridge.from_torch(state_dict, build_flax(header, 0, jnp.float32))
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        variable[...] = variable[...] + moments[f"pcm/mean/{'.'.join(map(str, path))}"]
    model.eval()
    flips = pd.read_parquet(finished_run / "flips.parquet")
    flips = flips.query("profile == 'pcm' and fold == 'test'").sort_values("index")
    scores = pd.read_parquet(finished_run / "scores.parquet").query("fold == 'test'")
    predicted = scores.set_index("index")["prediction"].loc[flips["index"]].to_numpy()
    test = data.load("digits").test
    place = {int(test[row]["index"]): row for row in range(len(test))}
    images = data.read(test, [place[index] for index in flips["index"]], description="test").images
    logits = np.array(model(jnp.asarray(read_normalisation(header).apply(images))))
    of_prediction = logits[np.arange(len(logits)), predicted].copy()
    logits[np.arange(len(logits)), predicted] = -np.inf
    expected = of_prediction - logits.max(axis=1)
    np.testing.assert_allclose(flips["margin"] + flips["shift"], expected, atol=2e-3)
    assert flips["shift"].abs().max() > 0.1  # else the sign would not matter

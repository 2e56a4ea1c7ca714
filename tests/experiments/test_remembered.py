"""A run's folder remembers its settings; a stage knows what changes its result."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bridge
from bridge.chips.memories.conductances import MappedPairs, Pairs
from bridge.chips.profiles import PROFILES, Profile
from experiments.cli import commands, parsing
from experiments.pipeline import registry, runner
from experiments.pipeline.plan import plan
from experiments.pipeline.registry import SPEED, STAGES
from experiments.pipeline.up_to_date import deciding, identity_of
from experiments.runs.files import sha256
from experiments.runs.job import Job
from experiments.runs.networks import identity_of_model
from experiments.runs.records import read_record, recorded_settings, write_record
from experiments.runs.remembered import (
    Remembered,
    as_leaves,
    recall,
    recall_run,
    remember,
    settings_file,
)
from experiments.runs.resume import key_of
from experiments.settings.flags import Data, Experiment
from experiments.settings.presets import PRESETS
from experiments.settings.restore import restore
from experiments.stages import score as score_stage
from experiments.stages import simulate as simulate_stage
from experiments.stages.analyse import ANALYSED, read_analysed
from experiments.stages.simulate import simulate
from experiments.studies.drift import Drift
from experiments.system.processes import Terminated
from jaxcurv.data.datasets import listing
from jaxcurv.data.images import encode_png
from jaxcurv.nested import flatten
from jaxcurv.progress import stage
from jaxcurv.storage.checksums import read_json, write_json
from tests.conftest import SMALL
from tests.one_process import stages_in_this_process

Said = Callable[..., str]


@pytest.fixture
def succeed(capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs a command in this process and returns what it said; each stage has its own."""

    def run(*arguments: str | Path) -> str:
        capfd.readouterr()
        code = commands.run(list(map(str, arguments)))
        said = capfd.readouterr().err
        assert code == 0, said
        return said

    return run


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that is refused before work, and returns its one line."""

    def run(*arguments: str | Path) -> str:
        capfd.readouterr()
        code = commands.run(list(map(str, arguments)))
        said = capfd.readouterr().err
        assert code == 2, said
        (line,) = [line for line in said.splitlines() if line.startswith("error:")]
        return line

    return run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that a command would run, in place of running them."""
    names: list[str] = []
    monkeypatch.setattr(runner, "_exit_code_of", lambda name, *_: names.append(name) or 0)
    return names


# --- What changes a stage's result


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        (("--simulate.batch-size", "32", "--score.batch-size", "32"), ""),
        (("--simulate.chips", "2"), "simulate analyse report"),
        (("--simulate.pcm.t-inference", "60"), "moments flips simulate analyse report"),
        (("--simulate.adc-calibration", "16"), "moments flips simulate analyse report"),
        (("--analyse.bins", "5"), "analyse report"),
        (("--score.estimator.probes", "4"), "score analyse report"),
        (("--model.width", "8"), " ".join(STAGES)),
    ],
)
def test_a_stage_runs_again_for_what_it_reads(
    finished_run: Path, flags: tuple[str, ...], stages: str
) -> None:
    steps = plan(_experiment(*flags, "--out", finished_run), finished_run, tuple(STAGES))
    assert [step.stage for step in steps if step.why] == stages.split()
    for step in steps:
        if step.why and not step.why.startswith("if "):
            assert f"{flags[0]} was " in step.why
    assert all(step.seconds and step.seconds > 0 for step in steps)


def test_a_run_of_before_guarantees_has_them_made_and_keeps_the_rest(run_copy: Path) -> None:
    """`report` alone does without them."""
    for name in ("analyse", "report"):
        record = read_json(run_copy / "stages" / f"{name}.json")
        for file in ("routing_guarantees.csv", "routing_guarantees.parquet"):
            (run_copy / file).unlink(missing_ok=True)
            record["inputs"].pop(file, None)
            record["outputs"].pop(file, None)
        write_json(run_copy / "stages" / f"{name}.json", record)
    steps = plan(_experiment("--out", run_copy), run_copy, tuple(STAGES))
    assert {step.stage: step.why for step in steps if step.why} == {
        "analyse": "routing_guarantees.parquet was not made yet",
        "report": "if analyse comes out different",
    }
    (step,) = plan(_experiment("--out", run_copy), run_copy, ("report",))
    assert step.why == ""
    tables = read_analysed(Job(_experiment("--out", run_copy), run_copy, None))
    assert set(ANALYSED) - set(tables) == {"routing_guarantees"}
    (run_copy / "routing.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"routing\.parquet"):
        read_analysed(Job(_experiment("--out", run_copy), run_copy, None))


def test_another_mapping_is_seen(run_copy: Path, ran: list[str], succeed: Said) -> None:
    """Its settings are others, by name; there and back."""
    factors = "--simulate.pcm.mapping.factors"
    pairs = ("--simulate.pcm.mapping", "pairs", factors, "1", "4", "--dry-run")
    said = succeed("run", "digits", "--out", run_copy, *pairs)
    assert f"{factors} not set -> [1.0, 4.0]" in said
    assert f"{factors} was unknown, is [1.0, 4.0]" in said
    record = read_record(run_copy, "simulate")
    assert record is not None
    record["settings"]["simulate"]["pcm"]["mapping"] |= {"factors": [1.0, 4.0]}
    write_record(run_copy, record)
    steps = plan(_experiment("--out", run_copy), run_copy, ("simulate",))
    assert [step.why for step in steps] == [f"{factors} was [1.0, 4.0], is not set"]


def test_a_run_under_the_names_of_an_earlier_version_is_up_to_date(
    run_copy: Path, ran: list[str], succeed: Said
) -> None:
    """Its records and settings as the version before the renaming wrote them."""

    def as_before(settings: dict[str, Any]) -> dict[str, Any]:
        if "adc_calibration" in (simulate := settings.get("simulate", {})):
            simulate["calibration"] = simulate.pop("adc_calibration")
        if "mapping" in (pcm := simulate.get("pcm", {})):
            pcm["converter"] = pcm.pop("mapping")
        return settings

    for path in sorted((run_copy / "stages").glob("*.json")):
        record = read_json(path)
        write_json(path, record | {"settings": as_before(record["settings"])})
    path = run_copy / "settings.json"
    write_json(path, as_before(read_json(path)))
    assert '"converter"' in path.read_text()
    assert '"calibration": 32' in (run_copy / "stages" / "simulate.json").read_text()
    said = succeed("run", "digits", "--out", run_copy)
    assert ran == []
    assert "->" not in said
    assert said.count("up to date") == len(STAGES)
    assert '"adc_calibration": 32' in path.read_text()
    # A study's own settings too, beside those of the run.
    study = run_copy / "drift" / "flags.json"
    before = as_before(json.loads(json.dumps(asdict(_experiment("--out", run_copy)))))
    remember(study, "digits", {"study": {"chips": 3}, "run": before})
    remembered = recall(study)
    assert remembered is not None
    assert remembered.part("run").changes(_experiment("--out", run_copy)) == []


def test_a_stage_names_its_own_change_before_what_it_waits_for(finished_run: Path) -> None:
    experiment = _experiment("--simulate.pcm.t-inference", "60", "--out", finished_run)
    why = {step.stage: step.why for step in plan(experiment, finished_run, tuple(STAGES))}
    assert why["flips"] == "--simulate.pcm.t-inference was 20.0, is 60.0"
    assert why["analyse"] == "if flips or simulate comes out different"


def test_a_device_repeats_nothing(
    run_copy: Path, ran: list[str], succeed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "require_device", lambda name: None)
    said = succeed("run", "digits", "--simulate.device", "cuda", "--out", run_copy)
    assert ran == []
    assert "--simulate.device cpu -> cuda" in said


def test_which_epochs_are_kept_repeats_nothing(
    run_copy: Path, ran: list[str], succeed: Said
) -> None:
    """Nor does it move unfinished trainings; what is gone is said."""
    every = ("1", "2", "none")
    for given in every:
        said = succeed("run", "digits", "--train.keep-every", given, "--out", run_copy)
        assert "comes too late" not in said
    record = read_record(run_copy, "train")
    assert record is not None
    assert record["settings"]["train"].pop("keep_every") == 1  # as a run of before has it
    write_record(run_copy, record)
    assert "comes too late" not in succeed("run", "digits", "--out", run_copy)
    said = succeed("run", "digits", "--train.keep-every", "2", "--dry-run", "--out", run_copy)
    assert ran == []
    assert (
        f"--train.keep-every 2 comes too late for {run_copy}: its finished training kept only the "
        "best and the newest epoch; to have more, train into another folder"
    ) in said
    said = succeed(
        *("run", "digits", "--train.keep-every", "2", "--train.epochs", "4"),
        *("--dry-run", "--out", run_copy),
    )
    assert "comes too late" not in said  # it will be trained
    keys = {
        key_of(deciding(identity_of(STAGES["train"], experiment, run_copy)))
        for experiment in (_experiment("--train.keep-every", one, *SMALL[:2]) for one in every)
    }
    assert len(keys) == 1


def test_every_stage_names_settings_that_there_are() -> None:
    known = as_leaves(Experiment())
    assert known.keys() >= SPEED
    for one in STAGES.values():
        for read in one.settings:
            assert any(name == read or name.startswith(f"{read}.") for name in known), read


def test_other_versions_are_named_and_repeat_nothing(
    run_copy: Path, ran: list[str], succeed: Said
) -> None:
    record = read_record(run_copy, "train")
    assert record is not None
    record["versions"] |= {"pandas": "0.1.2", "jax": "0.0.9"}
    write_record(run_copy, record)
    said = succeed("run", "digits", "--out", run_copy)
    assert ran == []
    (line,) = [line for line in said.splitlines() if line.startswith("train:")]
    assert line.startswith("train: up to date (made with ")
    assert "pandas 0.1.2, now " in line
    assert "jax 0.0.9, now " in line
    assert said.count("made with") == 1


def test_a_record_of_whole_groups_counts(run_copy: Path, ran: list[str], succeed: Said) -> None:
    """As stages recorded them before they named single settings; one of them is gone since."""
    whole = json.loads(json.dumps(asdict(_experiment("--out", run_copy))))
    whole["flip"] = {"programmings": 16}
    groups = {"export": ("data",), "moments": ("data", "simulate", "flip")}
    for name, some in groups.items():
        record = read_record(run_copy, name)
        assert record is not None
        record["settings"] |= {group: whole[group] for group in some}
        write_record(run_copy, record)
    settings_file(run_copy).unlink()
    assert succeed("run", "digits", "--out", run_copy).count(": up to date") == len(STAGES)
    assert ran == []


def _experiment(*flags: Any) -> Experiment:
    arguments = ["digits", *map(str, flags)]
    return parsing.parse_preset(parsing.Options, "run", arguments).experiment


def test_finished_chips_are_kept(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More chips, and other settings of a memory, simulate only what they change; of a profile
    that draws nothing the first chip is all of them."""
    programmed: list[str] = []
    program = bridge.program

    def noted(model: Any, profile: Profile, **options: Any) -> Any:
        programmed.append(profile.name)
        return program(model, profile, **options)

    monkeypatch.setattr(bridge, "program", noted)

    def simulated(*flags: str) -> pd.DataFrame:
        with stage("simulate"):
            simulate(Job(_experiment(*flags, "--out", run_copy), run_copy, None))
        return pd.read_parquet(run_copy / "predictions.parquet")

    def chips() -> dict[Path, int]:
        found = (run_copy / "chips").rglob("*.parquet")
        return {path: path.stat().st_mtime_ns for path in found}

    before = chips()
    predictions = pd.read_parquet(run_copy / "predictions.parquet")
    capsys.readouterr()
    grown = simulated("--simulate.chips", "2")
    count, profiles = len(predictions), predictions["profile"].nunique()
    every = 2 * count - 2 * count // profiles  # of ideal and adc no second chip
    told = f"simulate: {every:,} images ({count:,} from before), "
    assert told in capsys.readouterr().err
    more = chips()
    assert len(more) == 2 * len(before)
    assert {path: more[path] for path in before} == before
    assert list(grown["chip"].unique()) == [0, 1]
    still = ("ideal", "adc")
    assert not {*still} & {*programmed}
    assert len(programmed) == grown["profile"].nunique() - len(still)
    rows = grown[grown["profile"].isin(still)].set_index("chip").sort_index(kind="stable")
    pd.testing.assert_frame_equal(*(rows.loc[one].reset_index(drop=True) for one in (0, 1)))
    pd.testing.assert_frame_equal(
        grown[grown["chip"] == 0].reset_index(drop=True), predictions, check_exact=True
    )
    simulated("--simulate.pcm.t-inference", "60")
    new = {path.parent.name.rpartition("-")[0] for path in chips().keys() - more.keys()}
    assert new == {"pcm", "adc+wnoise+pcm", "pcm_gdc", "adc+wnoise+pcm_gdc"}
    before = chips()
    pd.testing.assert_frame_equal(simulated(), predictions, check_exact=True)
    assert chips() == before


def test_a_label_makes_other_chips_and_none_those_of_before(run_copy: Path) -> None:
    """A run of before there were labels is up to date, and keeps its chips."""
    record = read_record(run_copy, "simulate")
    assert record is not None
    assert record["settings"]["simulate"].pop("stream") is None
    write_record(run_copy, record)
    (step,) = plan(_experiment("--out", run_copy), run_copy, ("simulate",), {})
    assert step.why == ""
    places = {path.parent for path in (run_copy / "chips").rglob("*.parquet")}
    before = pd.read_parquet(run_copy / "predictions.parquet").set_index("profile")
    labelled = _experiment("--simulate.stream", "another", "--out", run_copy)
    (step,) = plan(labelled, run_copy, ("simulate",), {})
    assert step.why == "--simulate.stream was None, is another"
    simulate(Job(labelled, run_copy, None))
    found = pd.read_parquet(run_copy / "predictions.parquet").set_index("profile")
    now = {path.parent for path in (run_copy / "chips").rglob("*.parquet")}
    assert (len(now), places < now) == (2 * len(places), True)
    for name in found.index.unique():
        drawn = "wnoise" in name or "pcm" in name
        same = np.allclose(found.loc[name, "margin"], before.loc[name, "margin"], atol=1e-4)
        assert same is not drawn, name


def test_images_that_were_added_are_seen(tmp_path: Path) -> None:
    """A run's stages know the images of a folder by their listing."""
    for split in ("train", "test"):
        for label in ("a", "b"):
            write_png(tmp_path / "own" / split / label / "0.png", 0)
    experiment = replace(Experiment(), data=Data("own"))
    stage = registry.stage_of("train", experiment)
    run, images = tmp_path / "run", listing("own", tmp_path)
    before = identity_of(stage, experiment, tmp_path, images)
    record = {"name": "train", "outputs": {}, "versions": {}, "device": "", "platform": ""}
    record |= {"environment": {}, "seconds": 1.0, "measured": {}, **before}
    write_record(run, record)
    (step,) = plan(experiment, run, ("train",), images)
    assert step.why == ""
    write_png(tmp_path / "own" / "train" / "a" / "1.png", 255)
    (step,) = plan(experiment, run, ("train",), listing("own", tmp_path))
    assert step.why == "the train images of own has changed"
    write_png(tmp_path / "own" / "test" / "a" / "1.png", 255)
    images = listing("own", tmp_path)
    chips = identity_of(registry.STAGES["train"], experiment, tmp_path, images)
    assert "the test images of own" not in chips["inputs"]
    assert listing("digits", tmp_path) == listing("nowhere", tmp_path) == {}


def test_finished_work_of_other_images_is_not_used(run_copy: Path) -> None:
    experiment = _experiment("--out", run_copy)
    description = read_json(run_copy / "model.json")
    profile = PROFILES["pcm"]
    places = {
        (
            simulate_stage._place(job, description, "pcm", profile),
            score_stage._place(job, identity_of_model(job, description)),
        )
        for images in ({}, {"test": "before"}, {"test": "after"})
        for job in [Job(experiment, run_copy, None, images=images)]
    }
    assert len({chips for chips, _ in places}) == len({scores for _, scores in places}) == 3


def write_png(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((4, 4, 3), value, np.uint8)))


def test_a_stage_is_not_run_on_results_of_another_network(
    run_copy: Path, ran: list[str], refuse: Said
) -> None:
    """Training was repeated alone: what was made of the network before is not reported."""
    record = read_record(run_copy, "train")
    assert record is not None
    (run_copy / "history.csv").write_text("another training")
    record["outputs"]["history.csv"] = sha256(run_copy / "history.csv")
    description = read_json(run_copy / "model.json")
    write_json(run_copy / "model.json", description | {"trained": "again"})
    record["outputs"]["model.json"] = sha256(run_copy / "model.json")
    write_record(run_copy, record)
    for command in ("analyse", "report", "drift"):
        line = refuse(command, "digits", "--out", run_copy)
        assert "was run before train was changed" in line
        assert "run " in line
    assert ran == []


# --- Settings that do not slip


def test_a_dry_run_says_it_alone(run_copy: Path, ran: list[str], succeed: Said) -> None:
    before = sha256(run_copy)
    flags = ("--simulate.chips", "3", "--out", run_copy)
    said = succeed("run", "digits", *flags, "--dry-run").splitlines()
    assert said[0] == f"{run_copy} changes: --simulate.chips 1 -> 3"
    assert [line.split()[0] for line in said[1:]] == list(STAGES)
    assert sum(line.endswith("up to date") for line in said) == 5
    assert ran == []
    assert sha256(run_copy) == before
    nowhere = run_copy / "nowhere"
    said = succeed("run", "digits", "--out", nowhere, "--dry-run").splitlines()
    assert [line.split(maxsplit=1)[1] for line in said] == ["not run yet"] * len(STAGES)
    assert not nowhere.exists()


def test_figures_and_what_studies_leave_change_the_report_alone(
    run_copy: Path, succeed: Said
) -> None:
    def to_do(*flags: str) -> list[str]:
        said = succeed("run", "digits", *flags, "--out", run_copy, "--dry-run").splitlines()
        stages = [line.split()[0] for line in said if not line.endswith("up to date")]
        return [name for name in stages if name in STAGES]

    record = read_record(run_copy, "report")
    assert record is not None
    del record["settings"]["figures"]  # as a run of before has it
    write_record(run_copy, record)
    assert to_do() == []
    assert to_do("--figures.width", "single") == ["report"]
    assert to_do("--figures.profiles", "pcm") == ["report"]
    for study in ("drift", "remedies"):
        picture = run_copy / study / f"{study}.png"
        picture.parent.mkdir()
        picture.write_bytes(b"drawn")
        assert to_do() == ["report"]
        picture.unlink()


def test_another_preset_is_refused(run_copy: Path, refuse: Said, succeed: Said) -> None:
    line = refuse("run", "cifar10_resnet18", "--out", run_copy)
    assert f"{run_copy} holds a run of digits" in line
    assert "--out" in line


def test_a_setting_that_failed_is_not_remembered(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "digits", "--data.name", "nowhere", "--out", str(run_copy)]
    before = settings_file(run_copy).read_bytes()
    with stages_in_this_process():
        assert commands.run(command) == 1
    assert settings_file(run_copy).read_bytes() == before
    # One that was interrupted is: the same command goes on, and a shorter one too.
    for ended in (KeyboardInterrupt, Terminated, 137):

        def end(*_: Any, how: Any = ended) -> int:
            if isinstance(how, int):
                return how
            raise how

        monkeypatch.setattr(runner, "_exit_code_of", end)
        settings_file(run_copy).write_bytes(before)
        assert commands.run(command) >= 128
        assert _experiment("--out", run_copy).data.name == "nowhere"


def test_a_damaged_or_foreign_memory_is_named(run_copy: Path, refuse: Said) -> None:
    path = settings_file(run_copy)
    stored = read_json(path)
    for change, words in (
        ({"simulate": stored["simulate"] | {"tubes": 3}}, "no setting 'tubes' in this version"),
        ({"model": stored["model"] | {"width": "wide"}}, "width cannot be 'wide'"),
        ({"seed": 1.5}, "seed cannot be 1.5"),
        ({"folds": ["test", "tests"]}, "folds cannot be ['test', 'tests']"),
        ({"model": 3}, "model must hold settings"),
        ({"seed": -1}, "seed must not be negative"),
    ):
        write_json(path, stored | change)
        line = refuse("run", "digits", "--out", run_copy)
        assert str(path) in line
        assert words in line
    path.write_text("{")
    assert "delete or replace it" in refuse("run", "digits", "--out", run_copy)


def test_a_run_from_before_starts_from_its_records(run_copy: Path) -> None:
    """Its settings.json names no preset, and has what the finished stages recorded."""
    expected = _experiment("--out", run_copy)
    path = settings_file(run_copy)
    for stored in (recorded_settings(run_copy), None):
        path.unlink()
        if stored is not None:
            write_json(path, stored)
        assert _experiment("--out", run_copy) == expected
    remembered = recall_run(run_copy)
    assert remembered is not None
    assert remembered.preset is None


def test_out_is_found_wherever_it_stands(tmp_path: Path) -> None:
    experiment = replace(PRESETS["digits"].experiment, seed=7)
    remember(settings_file(tmp_path), "digits", asdict(experiment))
    for flags in (("--out", str(tmp_path)), (f"--out={tmp_path}",)):
        assert _experiment("--simulate.chips", "9", *flags, "--limit", "20").seed == 7
    assert _experiment("--limit", "20").seed == 0


@pytest.mark.parametrize("mapping", [Pairs((1.0, 4.0)), MappedPairs((1.0,), ((0.0, 25.0),) * 2)])
def test_settings_come_back_from_json(mapping: Any) -> None:
    start = PRESETS["digits"].experiment
    pcm = replace(start.simulate.pcm, mapping=mapping, compensation="global")
    changed = replace(
        start,
        simulate=replace(start.simulate, pcm=pcm),
        data=replace(start.data, mean=(0.5,), std=(0.25,)),
        folds=("test",),
    )
    stored = json.loads(json.dumps(asdict(changed)))
    assert restore(start, stored) == restore(Experiment(), stored) == changed
    del stored["simulate"]["pcm"]["g_max"], stored["seed"]
    assert restore(changed, stored) == changed


# --- Studies start from the run's settings, and say where they leave them


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, Drift]]:
    """What `drift` works with, in place of the work."""
    from experiments.studies import drift

    given: list[tuple[Experiment, Drift]] = []
    study = replace(
        drift.STUDY,
        open=lambda *_, **__: None,
        run=lambda _, experiment, settings, __: given.append((experiment, settings)),
    )
    monkeypatch.setattr(drift, "STUDY", study)
    return given


@pytest.mark.parametrize(
    ("flag", "value", "stage"),
    [
        ("--model.width", "8", "train"),
        ("--seed", "3", "train"),
        ("--simulate.pcm.t-inference", "60", "simulate"),
        ("--simulate.chips", "9", "simulate"),
    ],
)
def test_a_study_refuses_what_contradicts_the_run(
    run_copy: Path, refuse: Said, opened: list[Any], flag: str, value: str, stage: str
) -> None:
    for command in ("drift", "layers", "compare-noise"):
        line = refuse(command, "digits", flag, value, "--out", run_copy)
        assert f"{stage} in {run_copy} was run with other flags ({flag} was " in line
    assert not opened


def test_a_study_of_its_own_folder_may_have_other_chips(
    run_copy: Path, succeed: Said, refuse: Said, opened: list[tuple[Experiment, Drift]]
) -> None:
    flags = ("--simulate.pcm.g-max", "30", "--drift.out", run_copy / "other", "--out", run_copy)
    said = succeed("drift", "digits", *flags)
    assert "--simulate.pcm.g-max 25.0 -> 30.0" in said
    assert opened[0][0].simulate.pcm.g_max == 30.0
    assert opened[0][0].model.width == 4  # the run's, not the preset's
    assert "train in" in refuse("drift", "digits", *flags, "--model.width", "8")
    succeed("drift", "digits", *flags[2:])
    assert opened[1] == opened[0]  # the folder remembers which chips


def test_a_study_remembers_its_flags(
    run_copy: Path, succeed: Said, opened: list[tuple[Experiment, Drift]]
) -> None:
    line = ("drift", "digits", "--out", run_copy)
    succeed(*line, "--drift.chips", "2", "--drift.times", "0", "60")
    assert "--drift.profile pcm -> adc+pcm" in succeed(*line, "--drift.profile", "adc+pcm")
    said = succeed(*line, "--drift.chips", "3", "--dry-run")
    assert "--drift.chips 2 -> 3" in said
    assert f"would be computed into {run_copy / 'drift'}" in said
    given = [settings for _, settings in opened]
    assert given == [
        Drift(chips=2, times=(0.0, 60.0)),
        Drift(chips=2, times=(0.0, 60.0), profile="adc+pcm"),
    ]
    assert opened[0][0] == _experiment("--out", run_copy)


def test_an_interrupted_study_remembers_its_flags(
    run_copy: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.studies import drift

    def ended(how: BaseException) -> Any:
        def run(*_: Any) -> None:
            raise how

        return replace(drift.STUDY, run=run)

    line = ["drift", "digits", "--out", str(run_copy)]
    monkeypatch.setattr(drift, "STUDY", ended(OSError("no disk")))
    assert commands.run([*line, "--drift.chips", "9"]) == 1
    assert not (run_copy / "drift" / "flags.json").exists()
    monkeypatch.setattr(drift, "STUDY", ended(KeyboardInterrupt()))
    assert commands.run([*line, "--drift.chips", "9"]) == 130
    assert read_json(run_copy / "drift" / "flags.json")["study"]["chips"] == 9


def test_small_flags_are_what_the_run_remembers(finished_run: Path) -> None:
    stored = recall_run(finished_run)
    assert stored is not None
    assert (stored.preset, stored.path) == ("digits", finished_run / "settings.json")
    assert dict(flatten(stored.settings)) == as_leaves(_experiment(*SMALL))


def test_help_shows_what_is_remembered(run_copy: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "experiments", "run", "digits", "--out", str(run_copy), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0
    assert "(default: 4)" in shown.stdout  # --model.width, which is 16 in the preset


def test_a_setting_that_is_newer_than_the_folder_is_no_change(tmp_path: Path) -> None:
    experiment = PRESETS["digits"].experiment
    settings = json.loads(json.dumps(asdict(experiment)))
    del settings["model"]["factory"], settings["data"]["strict"]
    remembered = Remembered(tmp_path, "digits", settings)
    assert remembered.changes(experiment) == []
    strict = replace(experiment, data=replace(experiment.data, strict=True))
    assert remembered.changes(strict) == ["--data.strict not set -> True"]

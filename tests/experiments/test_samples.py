"""Samples chosen by index before any is decoded, kept in memory or streamed."""

import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

import bridge
from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables.failure_rates import vulnerable
from experiments.runs import descriptions, networks, samples
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.samples import (
    calibration_images,
    calibration_samples,
    choose_folds,
    limited,
    positions_of,
    read_small,
    scored_samples,
)
from experiments.settings.flags import Analyse, Data, Experiment, Model, Score, Simulate
from experiments.stages import analyse, export, flips, report, score, simulate
from jaxcurv import data, models
from jaxcurv.data import Arrays, Chosen, ImageDataset, Labelled, Normalisation, Sample, with_labels
from jaxcurv.data.folder import path_indices
from jaxcurv.data.images import decode
from jaxcurv.storage.checksums import write_json
from jaxcurv.training.checkpoints import keep_trained
from tests.chips import LiveLogits
from tests.shallow_resnet import replace_resnet18

COUNT, LIMIT, BATCH, CALIBRATION = 10_000, 32, 8, 16
EXPERIMENT = Experiment(
    data=Data("counted"),
    model=Model(width=2, weights="elsewhere.pth"),
    score=Score(compare=(), batch_size=BATCH),
    simulate=Simulate(
        profiles=("ideal", "adc", FULL_PROFILE), adc_calibration=CALIBRATION, batch_size=BATCH
    ),
    analyse=Analyse(resamples=100),
    folds=("test",),
    limit=LIMIT,
)


class Unnamed:
    """Grey images of 8x8 in shuffled order, drawn when asked for; which, and how many at a time,
    is counted."""

    def __init__(self, count: int, seed: int):
        self.order = np.random.default_rng(seed).permutation(count).astype(np.int64)
        self.decoded: Counter[int] = Counter()
        self.alive = self.most_alive = 0

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int, /) -> Sample:
        index = int(self.order[position])
        self.decoded[index] += 1
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 1), np.uint8)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(image, self._freed)
        return Sample(image=image, label=index % 3, index=index)

    def __getitems__(self, positions: list[int]) -> list[Sample]:
        return [self[position] for position in positions]

    def _freed(self) -> None:
        self.alive -= 1


class Counted(Unnamed):
    """The same, its labels and indices known beforehand."""

    @property
    def indices(self) -> np.ndarray:
        return self.order

    @property
    def labels(self) -> list[int]:
        return (self.order % 3).tolist()

    @property
    def paths(self) -> list[str]:
        return [file_of(index) for index in self.order.tolist()]


def file_of(index: int) -> str:
    return f"{index % 3}/{index}.png"


def counted(kind: type[Unnamed] = Counted, count: int = COUNT) -> ImageDataset:
    return ImageDataset("counted", ("zero", "one", "two"), kind(count, 1), kind(count, 2))


def in_memory(dataset: ImageDataset, experiment: Experiment) -> dict[str, Arrays]:
    """What is chosen where everything is decoded first."""
    settings = experiment.data
    official, test = data.read(dataset.train), data.read(dataset.test)
    parts = data.split_validation(
        official.indices, settings.validation_fraction, settings.split_seed
    )
    folds = {
        "train": official.take(parts[0]),
        "validation": official.take(parts[1]),
        "test": test.take(np.argsort(test.indices)),
    }
    return {
        fold: one.take(data.subset(one.indices, experiment.limit, settings.split_seed))
        for fold, one in folds.items()
        if fold in experiment.folds
    }


@pytest.mark.parametrize("kind", [Counted, Unnamed])
@pytest.mark.parametrize("limit", [None, LIMIT])
@pytest.mark.parametrize("memory", [0, samples.MEMORY])
def test_choices_are_those_made_in_memory(
    kind: type[Unnamed], limit: int | None, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MEMORY", memory)
    experiment = replace(
        EXPERIMENT,
        data=Data("counted", validation_fraction=0.2, split_seed=3),
        folds=("train", "validation", "test"),
        limit=limit,
    )
    expected = in_memory(counted(kind, 300), experiment)
    dataset = counted(kind, 300)
    folds = read_small(limited(choose_folds(dataset, experiment, experiment.folds), experiment))
    assert list(folds) == list(expected)
    for fold, one in folds.items():
        assert isinstance(one, Arrays if memory else Chosen)
        whole = data.read(one)
        for name in ("images", "labels", "indices"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(expected[fold], name))
            if name != "images":
                np.testing.assert_array_equal(getattr(one, name), getattr(whole, name))


@pytest.mark.parametrize("memory", [0, samples.MEMORY])
def test_images_of_a_folder_keep_their_files_and_indices(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        for number in range(20):
            file = tmp_path / f"own/{split}/{'ab'[number % 2]}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    monkeypatch.setattr(samples, "MEMORY", memory)
    experiment = replace(
        EXPERIMENT,
        data=Data("own", validation_fraction=0.2),
        folds=("train", "validation", "test"),
        limit=12,
    )
    job = Job(experiment, tmp_path, tmp_path)
    folds = read_small(
        limited(choose_folds(load_data(job), experiment, experiment.folds), experiment)
    )
    assert {fold: len(one) for fold, one in folds.items()} == {
        "train": 12,
        "validation": 4,
        "test": 12,
    }
    for fold, one in folds.items():
        split = tmp_path / "own" / ("test" if fold == "test" else "train")
        assert one.paths is not None
        paths = one.paths.tolist()
        assert one.indices.tolist() == path_indices(paths).tolist()
        assert np.all(np.diff(one.indices) > 0)
        assert one.labels.tolist() == ["ab".index(path[0]) for path in paths]
        expected = [decode(split / path) for path in paths]
        np.testing.assert_array_equal(data.read(one).images, expected)
        columns = bridge.predict(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval(),
            data.Normalised(one, Normalisation((0.5,) * 3, (0.3,) * 3)),
            batch_size=5,
        )
        assert columns["path"].tolist() == paths


def test_samples_that_are_gone_are_said() -> None:
    indices = np.array([40, 7, 90])
    assert positions_of(indices, np.array([90, 40])).tolist() == [2, 0]
    assert positions_of(indices, np.array([], np.int64)).tolist() == []
    for gone in (8, 3, 91):
        with pytest.raises(ValueError, match=rf"1 of the samples .* at index {gone}: .*run score"):
            positions_of(indices, np.array([7, gone]))


@pytest.mark.parametrize("limit", [None, 15])
def test_the_train_fold_has_a_limit_of_its_own(limit: int | None) -> None:
    experiment = replace(EXPERIMENT, folds=("train", "test"), limit=limit, limit_train=11)
    dataset = counted()
    every = choose_folds(dataset, experiment, experiment.folds)
    chosen = limited(every, experiment)
    assert len(every["train"]) > 11
    assert len(chosen["train"]) == 11
    assert len(chosen["test"]) == (len(every["test"]) if limit is None else limit)


def test_choosing_decodes_nothing_where_the_labels_are_known() -> None:
    dataset = counted()
    chosen = limited(choose_folds(dataset, EXPERIMENT, ("train", "test")), EXPERIMENT)
    assert list(chosen) == ["test"]
    assert not dataset.train.decoded + dataset.test.decoded  # type: ignore[attr-defined]
    unnamed = counted(Unnamed, 50)
    choose_folds(unnamed, EXPERIMENT, ("test",))
    assert not unnamed.train.decoded  # type: ignore[attr-defined]
    assert set(unnamed.test.decoded.values()) == {1}  # type: ignore[attr-defined]


def test_other_labels_and_equal_indices() -> None:
    source = Counted(5, 0)
    other = Labelled(source, np.full(5, 7, np.int32), np.arange(5, dtype=np.int64))
    assert [(one["label"], one["index"]) for one in other.__getitems__([4, 0])] == [(7, 4), (7, 0)]
    assert (other[3]["label"], other[3]["index"]) == (7, 3)
    np.testing.assert_array_equal(other[3]["image"], source[3]["image"])
    with pytest.raises(ValueError, match="5 samples, 4 labels"):
        Labelled(source, np.zeros(4, np.int32), np.arange(5, dtype=np.int64))
    source.order[1] = source.order[0]
    with pytest.raises(ValueError, match="indices must be unique"):
        with_labels(source)
    assert len(with_labels(Unnamed(0, 0))) == 0


@pytest.fixture(scope="module")
def one_block() -> Iterator[None]:
    """ResNet-18 of one block, which compiles in a fraction of the time."""

    with pytest.MonkeyPatch.context() as patch:
        replace_resnet18(patch)
        yield


@pytest.fixture(scope="module")
def model(one_block: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run up to its digital model, which has random weights."""
    folder = tmp_path_factory.mktemp("model")
    normalisation = Normalisation((0.5,), (0.3,))
    description = descriptions.describe(
        EXPERIMENT.model, counted(), in_channels=1, normalisation=normalisation
    )
    keep_trained(networks.build_flax(description, 0, jnp.float32), folder / "checkpoints")
    write_json(folder / "model.json", {**description, "checkpoint": "checkpoints"})
    return folder


class Run:
    """Stages after training, in this process: what each decoded, and which drew random weights."""

    def __init__(
        self,
        folder: Path,
        memory: int,
        todo: Sequence[Callable[[Job], Outcome]],
        monkeypatch: pytest.MonkeyPatch,
    ):
        self.decoded: dict[str, tuple[Counter[int], Counter[int]]] = {}
        self.most_alive: dict[str, int] = {}
        self.built: list[str] = []
        self.drew: list[str] = []
        self.folder = folder
        monkeypatch.setattr(samples, "MEMORY", memory)
        build = models.ResNet18
        stage_name = ""

        def noted(*given: Any, **named: Any) -> Any:
            model = build(*given, **named)
            self.built.append(stage_name)
            if not isinstance(model.conv1.kernel.get_value(), jax.core.Tracer):
                self.drew.append(stage_name)
            return model

        monkeypatch.setattr(models, "ResNet18", noted)
        job = Job(EXPERIMENT, folder, None, "unfinished")
        for stage in todo:
            stage_name = stage.__name__
            dataset = counted()
            for module in (score, export, flips, simulate, report):
                monkeypatch.setattr(module, "load_data", lambda job, dataset=dataset: dataset)
            stage(job)
            train, test = dataset.train, dataset.test
            assert isinstance(train, Counted)
            assert isinstance(test, Counted)
            self.decoded[stage.__name__] = train.decoded, test.decoded
            self.most_alive[stage.__name__] = test.most_alive


@pytest.fixture(scope="module")
def kept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """All stages with the scored samples in memory."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    shutil.copytree(model, folder)
    early = (score.score, export.export, flips.moments, flips.flips, simulate.simulate)
    with pytest.MonkeyPatch.context() as patch:
        yield Run(folder, samples.MEMORY, (*early, analyse.analyse, report.report), patch)


def test_a_stage_decodes_what_it_uses(kept: Run) -> None:
    official = counted()
    folds = choose_folds(official, EXPERIMENT, ("train", "test"))
    scored = set(limited(folds, EXPERIMENT)["test"].indices.tolist())
    assert len(scored) == LIMIT
    for stage in ("score", "moments", "flips", "simulate"):
        train, test = kept.decoded[stage]
        assert set(test) == scored, stage
        assert sum(test.values()) == LIMIT + 1, stage  # one to know the size by
        calibrates = stage in ("moments", "simulate")
        assert sum(train.values()) == (CALIBRATION if calibrates else 0), stage
    train, test = kept.decoded["export"]
    assert (sum(train.values()), sum(test.values())) == (0, 64)
    train, test = kept.decoded["report"]
    assert not train
    assert set(test) <= scored
    assert sum(test.values()) <= 2 * 8 + LIMIT  # gallery, and at most all that are correct
    assert not sum(map(sum, map(Counter.values, kept.decoded["analyse"])))


def test_no_stage_after_training_draws_random_weights(kept: Run) -> None:
    assert {"score", "export", "moments", "flips"} <= set(kept.built)
    assert kept.drew == []


def test_tables_name_the_files_of_images(kept: Run) -> None:
    scores = pd.read_parquet(kept.folder / "scores.parquet")
    assert scores.columns[:4].tolist() == ["fold", "index", "path", "label"]
    assert scores["path"].tolist() == scores["index"].map(file_of).tolist()
    # Once a sample, not once a chip and profile.
    assert "path" not in pd.read_parquet(kept.folder / "predictions.parquet")
    joined = analyse.read_joined(Job(EXPERIMENT, kept.folder, None))
    assert joined["path"].tolist() == joined["index"].map(file_of).tolist()
    shown = pd.read_csv(kept.folder / "figures" / "gallery.csv")
    assert shown["path"].tolist() == shown["index"].map(file_of).tolist()
    flips = pd.read_parquet(kept.folder / "flips.parquet")
    page = (kept.folder / "report.html").read_text()
    for path in vulnerable(joined, flips)["path"]:
        assert f'<td class="left">{path}</td>' in page


def test_streamed_results_are_those_in_memory(
    kept: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "run")
    logits = LiveLogits()
    monkeypatch.setattr(simulate, "logit_scores", logits)
    todo = (score.score, export.export, flips.moments, simulate.simulate)
    streamed = Run(tmp_path / "run", 0, todo, monkeypatch)
    for name in ("scores", "predictions", "output_noise"):
        one, other = (pd.read_parquet(run.folder / f"{name}.parquet") for run in (kept, streamed))
        pd.testing.assert_frame_equal(one, other)
    for stage in ("moments", "simulate"):
        assert streamed.most_alive[stage] <= CALIBRATION < LIMIT
        assert set(streamed.decoded[stage][1]) == set(kept.decoded[stage][1])
    assert set(streamed.decoded["score"][1]) == set(kept.decoded["score"][1])
    assert streamed.most_alive["score"] <= CALIBRATION
    simulated = EXPERIMENT.simulate
    predictions = pd.read_parquet(kept.folder / "predictions.parquet")
    assert set(predictions["profile"]) == set(simulated.profiles)
    chips = len(simulated.profiles) * simulated.chips
    # Of each chip's first batch the halves too.
    assert (logits.most, logits.seen) == (2 * BATCH, chips * (LIMIT + BATCH))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_folds_of_a_network_that_was_trained_elsewhere(own: bool, validation: bool) -> None:
    """It may have seen all of train: validation is a split of its own, or is not scored."""
    dataset = counted(count=40)
    if validation:
        dataset = replace(dataset, validation=Counted(30, 3))
    experiment = Experiment(model=Model(factory="a:b" if own else None))
    chosen = choose_folds(dataset, experiment, experiment.folds)
    sizes = {fold: len(some) for fold, some in chosen.items()}
    divided = {"train": 36, "validation": 4, "test": 40}
    given = {"train": 40, "validation": 30, "test": 40}
    assert sizes == (given if own and validation else divided)
    assert list(scored_samples(dataset, experiment)) == (
        ["train", "test"] if own and not validation else ["train", "validation", "test"]
    )
    assert len(calibration_samples(dataset, experiment)) == sizes["train"]


@pytest.mark.parametrize("validation", [False, True])
def test_a_page_tells_of_training_images_that_are_not_scored(
    validation: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = counted(count=40)
    if validation:
        dataset = replace(dataset, validation=Counted(30, 3))
    experiment = Experiment(model=Model(factory="a:b"))
    description = {"normalisation": {"mean": [0.5], "std": [0.25]}}
    monkeypatch.setattr(report, "read_description", lambda _: description)
    said = " ".join(report._notes(Job(experiment, tmp_path, None), dataset))
    assert ("4 images of train are not scored" in said) != validation


@pytest.mark.parametrize(
    ("model", "kept"),
    [(Model(), 4), (Model(weights="elsewhere.pth"), 2), (Model(factory="a:b"), 4)],
)
def test_no_guarantee_by_images_that_weights_from_elsewhere_have_seen(
    model: Model, kept: int
) -> None:
    """A factory's network has a validation fold only where that is a split of its own."""
    joined = pd.DataFrame({"fold": ["train", "validation", "validation", "test"]})
    found = analyse._of_new_samples(joined, model)["fold"].tolist()
    assert found == (joined["fold"].tolist() if kept == 4 else ["train", "test"])


def test_a_run_of_weights_from_a_file_has_no_guarantees(run_copy: Path) -> None:
    path = run_copy / "routing_guarantees.csv"
    assert len(pd.read_csv(path))
    elsewhere = Experiment(model=Model(weights="x.pth"), analyse=Analyse(resamples=5), limit=60)
    analyse.analyse(Job(elsewhere, run_copy, None))
    assert pd.read_csv(path).empty
    assert len(pd.read_csv(run_copy / "routing_choices.csv"))


def test_converters_are_calibrated_on_what_stands_for_train() -> None:
    held = Counted(7, 4)
    dataset = replace(
        counted(count=40), train=Counted(0, 1), validation=Counted(9, 3), calibration=held
    )
    experiment = Experiment(model=Model(factory="a:b"))
    assert list(scored_samples(dataset, experiment)) == ["validation", "test"]
    images = calibration_images(
        calibration_samples(dataset, experiment), Normalisation((0.0,), (1.0,)), experiment
    )
    assert (len(images), len(held.decoded)) == (7, 7)

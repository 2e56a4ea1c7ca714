"""A chip over a data set: one row a sample, in bounded memory, resumable, whatever the batch."""

import json
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from bridge import PROFILES, failure_table, load_chip, predict, program, save_chip
from bridge.analysis import logit_scores
from tests.chips import Blocks, LiveLogits, changed_blocks, noisy, single, small_resnet


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet(width=4)


class Images:
    """Samples made when they are asked for; it counts how many were."""

    def __init__(self, count: int, size: int = 8, first: int = 0):
        self.count, self.size, self.first, self.read = count, size, first, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not 0 <= position < self.count:
            raise IndexError(position)
        self.read += 1
        index = self.first + 3 * position
        rng = np.random.default_rng(index)
        image = rng.normal(size=(self.size, self.size, 3)).astype(np.float32)
        return {"image": image, "label": index % 10, "index": index}


def logits(table: pd.DataFrame) -> np.ndarray:
    return np.stack(table["logits"].to_numpy())


def test_one_row_a_sample_in_order(network: nn.Module) -> None:
    source = Images(11)
    table = predict(network, source, batch_size=4)
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {
        "index": "int64",
        "label": "int64",
        "prediction": "int64",
        "correct": "bool",
        "logits": "object",
    }
    assert {(row.dtype, row.shape) for row in table["logits"]} == {(np.dtype(np.float32), (10,))}
    samples = [source[n] for n in range(11)]
    assert table["index"].tolist() == [sample["index"] for sample in samples]
    assert table["label"].tolist() == [sample["label"] for sample in samples]
    images = torch.tensor(np.stack([sample["image"] for sample in samples]).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        expected = network(images).numpy()
    np.testing.assert_allclose(logits(table), expected, rtol=1e-4, atol=1e-5)
    assert table["prediction"].to_numpy().tolist() == logits(table).argmax(1).tolist()
    right = table["prediction"].to_numpy() == table["label"].to_numpy()
    assert table["correct"].tolist() == right.tolist()


def test_a_source_may_give_many_at_once(network: nn.Module) -> None:
    asked = []

    class Many(Images):
        def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
            asked.append(positions)
            return [self[position] for position in positions]

    table = predict(network, Many(5), batch_size=3)
    assert asked == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2], [3, 4]]  # some twice: not random
    assert table.equals(predict(network, Images(5), batch_size=3))


def test_a_source_may_be_arrays_or_a_torch_data_set(network: nn.Module) -> None:
    samples = [Images(5)[n] for n in range(5)]
    images = np.stack([sample["image"] for sample in samples])
    labels = np.array([sample["label"] for sample in samples])
    expected = predict(network, [{**one, "index": n} for n, one in enumerate(samples)])
    tensors = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    dataset = torch.utils.data.TensorDataset(*tensors)
    for source in ((images, labels), tensors, dataset, torch.utils.data.DataLoader(dataset)):
        assert predict(network, source).equals(expected)
    named = [{"img": one["image"], "fine_label": one["label"]} for one in samples]
    names = {"image": "img", "label": "fine_label"}
    assert predict(network, named, keys=names).equals(expected)
    with pytest.raises(ValueError, match="got a generator"):
        predict(network, (sample for sample in samples))


def test_two_random_subsets_are_not_taken_for_one(network: nn.Module) -> None:
    samples = [Images(16)[n] for n in range(16)]
    images = torch.from_numpy(np.stack([one["image"] for one in samples]).transpose(0, 3, 1, 2))
    dataset = torch.utils.data.TensorDataset(images, torch.arange(16) % 10)
    first, second = (
        predict(network, torch.utils.data.Subset(dataset, which), keep=logit_scores)
        for which in (list(range(8)), list(range(8, 16)))
    )
    assert first["index"].equals(second["index"])
    with pytest.raises(ValueError, match="same row numbers and other labels"):
        failure_table(-first.margin, first.correct, second.correct, bins=4)
    assert len(failure_table(-first.margin, first.correct, first.correct, bins=4)) == 4


@pytest.mark.parametrize(
    "profile",
    [PROFILES["pcm"], PROFILES["adc+wnoise+pcm"], noisy("pcm_read", pcm=True)],
    ids=["pcm", "adc+wnoise+pcm", "per mvm"],
)
def test_neighbours_do_not_matter(network: nn.Module, profile: Any) -> None:
    source = Images(20)
    calibration = np.stack([source[n]["image"] for n in range(8)])
    chip = program(network, profile, seed=0, calibration=calibration)
    whole = predict(chip, source, batch_size=20)
    parts = predict(chip, source, batch_size=7)
    last = predict(chip, Images(3, first=51), batch_size=3)
    assert last["index"].tolist() == whole["index"].tolist()[17:]
    # A quantised value at a rounding edge may fall either way.
    tolerance = 1e-2 if profile.adc else 1e-5
    for one, other in ((whole, parts), (whole[17:], last)):
        error = np.linalg.norm(logits(one) - logits(other)) / np.linalg.norm(logits(one))
        assert error < tolerance


def test_a_finished_table_is_read_not_made_again(network: nn.Module, tmp_path: Path) -> None:
    chip = program(network, PROFILES["pcm"], seed=0)
    path = tmp_path / "predictions.parquet"
    source = Images(30)
    table = predict(chip, source, batch_size=8, out=path)
    assert table.equals(predict(chip, Images(30), batch_size=8))
    assert pq.read_table(path).to_pandas().equals(table)
    again = Images(30)
    assert predict(program(network, PROFILES["pcm"], seed=0), again, out=path).equals(table)
    assert again.read == 1 + 2 * 4 + 16  # what samples are like, that they stay, which they are
    checksums = {"index_checksum", "column_checksums"}
    assert table.attrs.keys() == {"chip", "samples", "some", "keep"} | checksums
    assert (table.attrs["samples"], table.attrs["keep"]) == (30, None)
    assert os.listdir(tmp_path) == [path.name]
    for other_chip, other_source in (
        (program(network, PROFILES["pcm"], seed=1), Images(30)),
        (chip.at(60.0), Images(30)),
        (network, Images(30)),
        (chip, Images(29)),
        (chip, Images(30, first=1)),
    ):
        with pytest.raises(
            ValueError, match=r"another chip, from other samples or with .*: remove"
        ):
            predict(other_chip, other_source, out=path)


OTHER_CODE = {
    "activation": r"layer act was ReLU\(\) and is GELU\(approximate='none'\)\)",
    "slope": r"layer act was ReLU\(\) and is LeakyReLU\(negative_slope=0.01\)\)",
    "approximation": r"layer act was GELU.*and is GELU\(approximate='tanh'\)\)",
    "hook": r"layer norm was BatchNorm2d\(6, .*\) and is BatchNorm2d\(6, .*\) with hook halving\)",
    "pre-hook": r"layer fc was Linear\(.*\) and is Linear\(.*\) with hook <lambda>\)",
    "eps": r"layer norm was BatchNorm2d\(6, eps=1e-05.* and is BatchNorm2d\(6, eps=0.0001",
    "stride": r"layer digital was Conv2d\(.*stride=\(1, 1\).* and is .*stride=\(2, 2\)",
    "padding": r"layer digital was .* and is .*padding_mode=reflect",
    "pooling": r"layer pool was AdaptiveAvgPool2d\(.*\) and is AdaptiveMaxPool2d",
    "between": r"no kind, setting or hook of a layer tells why: see the code between\)",
    "a number": r"scale was 1\.0 and is 1\.001\)",
    "outputs": r"it gives 9 logits now and gave 10 \(",
    "fails": r"it gives no logits now \(",
}
ENGINES: dict[str, Any] = {
    "digital": lambda model: model,
    "adc+wnoise+pcm": lambda model: program(
        model,
        PROFILES["adc+wnoise+pcm"],
        seed=0,
        calibration=np.stack([Images(8)[n]["image"] for n in range(8)]),
        digital_layers=["digital"],
    ),
    "per mvm": lambda model: program(
        model, noisy("pcm_read", 0.3), seed=0, digital_layers=["digital"]
    ),
    "aihwkit": lambda model: program(
        model, noisy("constant", 0.3), seed=0, engine="aihwkit", digital_layers=["digital"]
    ),
}


@pytest.mark.parametrize("name", OTHER_CODE)
def test_a_table_of_the_same_weights_and_other_code_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    made = ENGINES["digital"] if name in ("fails", "outputs") else ENGINES["per mvm"]
    before = changed_blocks("activation") if name == "approximation" else Blocks()
    table = predict(made(before), Images(6), out=path)
    assert predict(made(before), Images(6), out=path).equals(table)
    message = rf"of the same weights and other code\. On 6 of the samples .*{OTHER_CODE[name]}"
    with pytest.raises(ValueError, match=message + ".*: remove it, or give another out"):
        predict(made(changed_blocks(name)), Images(6), out=path)


class Rare(nn.Module):
    """Its code does something on few samples only."""

    def __init__(self, beyond: float, act: nn.Module):
        super().__init__()
        self.fc, self.act, self.beyond = nn.Linear(192, 10), act, beyond
        generator = torch.Generator().manual_seed(0)
        self.fc.weight.data = torch.randn(10, 192, generator=generator)
        self.fc.bias.data = torch.zeros(10)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.fc(x.flatten(1).clamp(max=self.beyond)))


def with_one_bright(count: int = 40, bright: float = 9.0) -> list[dict[str, Any]]:
    """The last sample alone reaches a large value."""
    samples = [Images(count)[n] for n in range(count)]
    for sample in samples:
        sample["image"] = sample["image"].clip(-2, 2)
    samples[-1]["image"][2, 3, 1] = bright
    return samples


@pytest.mark.parametrize("made", ["digital", "per mvm"])
def test_code_that_shows_in_one_of_sixteen_samples(made: str, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"

    def network(beyond: float) -> Any:
        model = Rare(beyond, nn.Identity())
        return model if made == "digital" else program(model, noisy("pcm_read", 0.3), seed=0)

    samples = with_one_bright()
    table = predict(network(3.0), samples, out=path)
    assert predict(network(3.0), samples, batch_size=7, out=path).equals(table)
    with pytest.raises(ValueError, match=r"other code\. On 16 of the samples .*logits differ"):
        predict(network(torch.inf), samples, out=path)


def test_layers_that_no_sample_tells_apart_are_named(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    samples = with_one_bright(bright=1.0)
    table = predict(Rare(3.0, nn.Hardtanh(-99.0, 99.0)), samples, out=path)
    with pytest.warns(UserWarning, match=r"other layers: layer act was Hardtanh.* is Identity"):
        assert predict(Rare(3.0, nn.Identity()), samples, out=path).equals(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(Rare(3.0, nn.Hardtanh(-99.0, 99.0)), samples, out=path)


def test_tables_that_know_the_code_by_two_samples(tmp_path: Path) -> None:
    """Those of earlier versions: the first one, and the next that is another."""
    path, samples = tmp_path / "out.parquet", with_one_bright()
    table = predict(Rare(1.0, nn.Identity()), samples, out=path)
    stored = pq.read_table(path)
    metadata = dict(stored.schema.metadata)
    code = json.loads(metadata[b"bridge.predict.code"])
    assert len(code["logits"]) == 16
    code["logits"] = code["logits"][:2]
    metadata[b"bridge.predict.code"] = json.dumps(code).encode()
    pq.write_table(stored.replace_schema_metadata(metadata), path)
    assert predict(Rare(1.0, nn.Identity()), samples, out=path).equals(table)
    with pytest.raises(ValueError, match=r"other code\. On 2 of the samples"):
        predict(Rare(0.5, nn.Identity()), samples, out=path)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_table_goes_on_elsewhere(engine: str, tmp_path: Path) -> None:
    """With other threads, batches, convolution algorithms and tiles' noise."""
    path, make = tmp_path / "out.parquet", ENGINES[engine]
    table = predict(make(Blocks()), Images(6), out=path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            again = predict(make(Blocks()), Images(6), batch_size=1, out=path)
    finally:
        torch.set_num_threads(threads)
    assert again.equals(table)
    with pytest.raises(ValueError, match=r"(other code|another chip).*layer act was ReLU"):
        predict(make(changed_blocks("activation")), Images(6), out=path)


def test_networks_that_round_go_on(tmp_path: Path) -> None:
    """The last bit of an input decides the level of a feature."""
    path = tmp_path / "out.parquet"
    edge = [{**Images(4)[n], "image": np.full((8, 8, 3), 0.5, np.float32)} for n in range(4)]

    def rounding(by: float) -> nn.Module:
        return Blocks(conv=nn.Identity(), norm=nn.Identity(), digital=nn.Identity(), act=Round(by))

    class Round(nn.Module):
        def __init__(self, by: float):
            super().__init__()
            self.by = by

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.by).round().repeat(1, 2, 1, 1)

    predict(rounding(1.0), edge, out=path)
    predict(rounding(1 + 1e-7), edge, out=path)
    with pytest.raises(ValueError, match="other code"):
        predict(rounding(2.6), edge, out=path)


def test_tables_of_earlier_versions_are_read(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    table = predict(network, Images(6), out=path)
    stored = pq.read_table(path)
    metadata = {
        name: value for name, value in stored.schema.metadata.items() if b"code" not in name
    }
    assert metadata.keys() < stored.schema.metadata.keys()
    pq.write_table(stored.replace_schema_metadata(metadata), path)
    assert predict(network, Images(6), out=path).equals(table)
    pq.write_table(stored.replace_schema_metadata(None), path)
    with pytest.raises(ValueError, match=r"was not made by predict: remove it, or give another"):
        predict(network, Images(6), out=path)


def test_an_interrupted_table_leaves_nothing(network: nn.Module, tmp_path: Path) -> None:
    class Broken(Images):
        def __getitem__(self, position: int) -> dict[str, Any]:
            if position == 9:
                raise KeyboardInterrupt
            return super().__getitem__(position)

    with pytest.raises(KeyboardInterrupt):
        predict(network, Broken(12), batch_size=2, out=tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == []
    (tmp_path / "out.parquet").write_bytes(b"not a table")
    with pytest.raises(ValueError, match=r"out\.parquet is damaged .*delete or replace it"):
        predict(network, Images(12), out=tmp_path / "out.parquet")


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 200)).eval().requires_grad_(False)
    peaks = []
    for count in (200, 1000):
        tracemalloc.start()
        predict(model, Images(count, size=4), batch_size=20, out=tmp_path / f"{count}.parquet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    logits_in_all = 1000 * 200 * 4
    assert peaks[1] - peaks[0] < 0.2 * logits_in_all


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_kept_in_place_of_the_logits(
    network: nn.Module, tmp_path: Path, on_disk: bool
) -> None:
    keep = LiveLogits()
    out = tmp_path / "kept.parquet" if on_disk else None
    table = predict(network, Images(50), batch_size=4, out=out, keep=keep)
    whole = predict(network, Images(50), batch_size=4)
    assert table.drop(columns=["margin", "entropy", "least_confidence"]).equals(
        whole.drop(columns="logits")
    )
    for name, expected in logit_scores(logits(whole)).items():
        np.testing.assert_array_equal(table[name].to_numpy(), expected)
    assert (keep.most, keep.seen) == (8, 54)  # of the first batch the halves too
    if out is not None:
        with pytest.raises(ValueError, match=r"made by another chip.* or with another keep"):
            predict(network, Images(50), out=out)


class Kept:
    """What is kept, by a name that does not tell it."""

    def __init__(self, columns: dict[str, Any]):
        self.columns = columns

    def __call__(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column(logits) for name, column in self.columns.items()}


def test_another_keep_of_the_same_name_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "kept.parquet"
    columns: dict[str, Any] = {
        "largest": lambda x: x.max(1),
        "place": lambda x: x.argmax(1),
        "path": lambda x: x[:, 0],
        "word": lambda x: np.array([f"{row.argmax()}" for row in x]),
        "none": lambda x: np.full(len(x), np.nan, np.float32),
    }
    table = predict(network, Images(7), batch_size=3, out=path, keep=Kept(columns))
    assert predict(network, Images(7), batch_size=1, out=path, keep=Kept(columns)).equals(table)
    for name, column in (
        ("largest", lambda x: x.min(1)),
        ("largest", lambda x: 1.01 * x.max(1)),
        ("place", lambda x: x.argmin(1)),
        ("word", lambda x: np.array(["a"] * len(x))),
        ("none", lambda x: np.zeros(len(x), np.float32)),
        ("one more", lambda x: x.max(1)),
    ):
        with pytest.raises(ValueError, match=rf"another keep of the same name.* {name}.*: remove"):
            predict(network, Images(7), out=path, keep=Kept(columns | {name: column}))
    less = {name: column for name, column in columns.items() if name != "word"}
    with pytest.raises(ValueError, match=r"another keep of the same name.* word"):
        predict(network, Images(7), out=path, keep=Kept(less))


def test_a_long_table_is_in_few_pieces(tmp_path: Path) -> None:
    """Each costs memory in the file's footer."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval().requires_grad_(False)
    path = tmp_path / "out.parquet"
    table = predict(model, Images(2100, size=4), batch_size=10)
    assert table["index"].tolist() == list(range(0, 6300, 3))
    assert predict(model, Images(2100, size=4), batch_size=10, out=path).equals(table)
    assert pq.read_metadata(path).num_row_groups == 3


MOST: dict[str, Any] = {
    "jax": lambda x: jax.nn.softmax(x).max(1),
    "torch": lambda x: torch.from_numpy(x.copy()).softmax(1).amax(1),
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True).softmax(1).amax(1),
    "list of JAX's": lambda x: list(jax.nn.softmax(x).max(1)),
    "list of torch's": lambda x: list(torch.tensor(x).softmax(1).amax(1)),
    "pandas": lambda x: pd.Series(np.asarray(jax.nn.softmax(x).max(1))),
    "memory": lambda x: memoryview(np.asarray(jax.nn.softmax(x).max(1))),
}


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("on_disk", [False, True])
def test_columns_of_others_arrays(
    network: nn.Module, kind: str, on_disk: bool, tmp_path: Path
) -> None:
    keep = Kept({"most": MOST[kind]})
    out = tmp_path / "kept.parquet" if on_disk else None
    table = predict(network, Images(5), batch_size=3, out=out, keep=keep)
    whole = logits(predict(network, Images(5)))
    np.testing.assert_allclose(table["most"], jax.nn.softmax(whole).max(1), rtol=1e-5)
    assert table["most"].dtype == np.float32
    if out is not None:
        assert predict(network, Images(5), batch_size=1, out=out, keep=keep).equals(table)
        with pytest.raises(ValueError, match="another keep of the same name"):
            predict(network, Images(5), out=out, keep=Kept({"most": lambda x: x.min(1)}))


def test_columns_of_half_precision_places_and_words(network: nn.Module) -> None:
    table = predict(
        network,
        Images(5),
        keep=lambda x: {
            "jax": jax.numpy.asarray(x.max(1), jax.numpy.bfloat16),
            "torch": torch.tensor(x.max(1)).bfloat16(),
            "half": x.max(1).astype(np.float16),
            "place": torch.tensor(x).argmax(1),
            "sure": jax.numpy.asarray(x.max(1) > 0),
            "word": [f"{row.argmax()}" if row[0] > 0 else None for row in x],
        },
    )
    assert table["jax"].dtype == table["torch"].dtype == np.float32
    np.testing.assert_array_equal(table["jax"], table["torch"])
    np.testing.assert_array_equal(table["place"], table["prediction"])
    assert (table["place"].dtype, table["sure"].dtype) == (np.int64, np.bool_)
    assert table["word"].dropna().tolist() == [
        f"{place}" for place, word in zip(table["place"], table["word"], strict=True) if word
    ]


OF_THE_BATCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "standardised": lambda x: (x.max(1) - x.max(1).mean()) / (x.max(1).std() + 1),
    "ranks": lambda x: x.max(1).argsort().argsort(),
    "a share of the largest": lambda x: x.max(1) / x.max(),
    "words": lambda x: np.where(x.max(1) >= x.max(), "most", "less"),
    "position": lambda x: np.arange(len(x)),
}


def test_what_cannot_be_kept_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"numbers or text; got score of dtype complex64"):
        predict(network, Images(3), keep=lambda x: {"score": x[:, 0].astype(np.complex64)})
    with pytest.raises(ValueError, match=r"keep must make columns by name.*; got ndarray"):
        predict(network, Images(3), keep=lambda x: x.max(1))  # type: ignore[arg-type,return-value]
    for name, values in (("correct", np.zeros(3)), ("score", np.zeros(2)), ("score", 0.0)):
        with pytest.raises(ValueError, match=rf"one value a sample, .*; got {name} of shape"):
            predict(network, Images(3), keep=lambda _, one={name: values}: one)  # type: ignore[misc]


@pytest.mark.parametrize("name", OF_THE_BATCH)
def test_what_depends_on_the_batch_is_not_kept(network: nn.Module, name: str) -> None:
    def keep(logits: np.ndarray) -> dict[str, np.ndarray]:
        return {"fine": logits.max(1), "score": OF_THE_BATCH[name](logits)}

    for run in (network, program(network, PROFILES["wnoise"], seed=0)):
        with pytest.raises(ValueError, match="keep makes score of the batch as a whole"):
            predict(run, Images(6), keep=keep)
        predict(run, Images(6), batch_size=1, keep=keep)


def test_bad_inputs_are_refused(network: nn.Module) -> None:
    def sample(**other: Any) -> dict[str, Any]:
        return {"image": np.zeros((8, 8, 3), np.float32), "label": 0, "index": 0, **other}

    with pytest.raises(ValueError, match=r'\{"image".*position 0 is a tuple of length 3'):
        predict(network, [(np.zeros((8, 8, 3), np.float32), 0, 0)])
    with pytest.raises(ValueError, match="no 'label', but 'image', 'index'"):
        predict(network, [{"image": np.zeros((8, 8, 3), np.float32), "index": 0}])
    with pytest.raises(ValueError, match="not keys image, index"):
        predict(network, [sample(), {"image": sample()["image"], "index": 1}])
    with pytest.raises(FileNotFoundError, match="no folder nowhere for out"):
        predict(network, Images(1), out="nowhere/out.parquet")

    def run(*samples: dict[str, Any], module: nn.Module = network, **settings: Any) -> None:
        predict(module, list(samples), **settings)

    with pytest.raises(
        ValueError,
        match=r"must be float32 .*image 4, at position 1, is float64 .*astype\(numpy.float32",
    ):
        run(sample(), sample(image=np.zeros((8, 8, 3)), index=4))
    with pytest.raises(
        ValueError, match=r"image 0, at position 0, is uint8 .*jaxcurv.data.Normalised\(source, jax"
    ):
        run(sample(image=np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match="of one shape; image 1"):
        run(sample(), sample(image=np.zeros((9, 8, 3), np.float32), index=1))
    with pytest.raises(ValueError, match="must not be negative"):
        run(sample(index=-1))
    with pytest.raises(ValueError, match="must not be negative"):
        run(sample(label=-1))
    with pytest.raises(ValueError, match="the source has no samples"):
        run()
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        run(sample(), batch_size=0)
    with pytest.raises(ValueError, match="training mode"):
        run(sample(), module=nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"must give logits \[batch, class\]"):
        run(sample(), module=nn.Conv2d(3, 2, 1).eval())
    damaged = sample(image=np.full((8, 8, 3), np.nan, np.float32), index=7)
    with pytest.raises(ValueError, match="non-finite logits, first for image 7"):
        run(sample(), damaged)
    chip = program(single(nn.Linear(3, 2)), PROFILES["ideal"], seed=0)
    with pytest.raises(ValueError, match="2 images need as many indices, not 3"):
        chip(torch.zeros(2, 3), range(3))


def test_another_normalisation_is_refused(network: nn.Module, tmp_path: Path) -> None:
    """Pixels of 0 to 255, where the chip was calibrated on standardised ones."""
    source = Images(6)
    calibration = np.stack([source[n]["image"] for n in range(6)])
    chip = program(network, PROFILES["adc+pcm"], seed=0, calibration=calibration)
    raw = [{**source[n], "image": 40 * source[n]["image"] + 120} for n in range(6)]
    save_chip(tmp_path / "chip.safetensors", chip)
    for one in (chip, chip.at(60.0), load_chip(tmp_path / "chip.safetensors", network)):
        predict(one, source)
        with pytest.raises(ValueError, match=r"image 0 reaches 2.* normalise both as the model"):
            predict(one, raw)


def test_images_far_below_the_calibration_s_are_told(network: nn.Module) -> None:
    """Standardised pixels, where the chip was calibrated on those of 0 to 255; not a few of them,
    which may be dark."""
    source = Images(12)
    raw = np.stack([40 * source[n]["image"] + 120 for n in range(12)])
    chip = program(network, PROFILES["adc"], seed=0, calibration=raw)
    with pytest.warns(UserWarning, match=r"first 8 images reach .* normalise both as the model"):
        predict(chip, source, batch_size=8)
    predict(chip, source, batch_size=7)
    dark = [{**source[n], "image": raw[n] / (1 if n < 4 else 100)} for n in range(12)]
    predict(chip, dark, batch_size=4)  # later images may be dark


def test_images_are_not_written_to(network: nn.Module) -> None:
    image = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    image.setflags(write=False)
    predict(network, [{"image": image, "label": 0, "index": 0}])


def test_columns_of_tables_of_other_samples_are_not_taken_together(network: nn.Module) -> None:
    chip = program(network, PROFILES["ideal"], seed=0)
    digital = predict(network, Images(30), keep=logit_scores)
    analog, others = predict(chip, Images(30)), predict(chip, Images(30, first=1))
    failure_table(-digital["margin"], digital["correct"], analog["correct"])
    with pytest.raises(ValueError, match=r"analog_correct is of a table of other samples"):
        failure_table(-digital["margin"], digital["correct"], others["correct"])


class Top(nn.Module):
    """A network that gives its first classes."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).topk(2).indices


class Tuple(nn.Module):
    """A network that gives more than its logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.network(images), 1


def mixing(**settings: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(4, **settings)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(144, 10)).eval()


def test_networks_that_mix_their_batch_or_give_no_logits_are_refused(network: nn.Module) -> None:
    partly = mixing()
    partly[1].train()
    for bad, message in (
        (partly, r"the module \(1\) is in training mode"),
        (mixing(track_running_stats=False), "mixes the samples of a batch: 1 keeps no running"),
        (Tuple(network), r"must give logits \[batch, class\], not tuple"),
        (Top(network), r"gives torch.int64, classes and not logits.*argmax"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), r"not \(4, 4, 6, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(bad.eval() if isinstance(bad, Tuple | Top) else bad, Images(4))
    for bad, message in ((partly, "training mode"), (mixing(track_running_stats=False), "mixes")):
        with pytest.raises(ValueError, match=message):
            program(bad, PROFILES["pcm"], seed=0)


def test_labels_and_indices_that_cannot_be_are_refused(network: nn.Module) -> None:
    image = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\).*that of image 4 is 12"):
        predict(network, [{"image": image, "label": 12, "index": 4}])
    with pytest.raises(ValueError, match="indices must be unique, but 3 occurs 2 times"):
        predict(network, 2 * [{"image": image, "label": 0, "index": 3}], batch_size=1)
    with pytest.raises(ValueError, match=r"keep makes columns of a batch's logits.*got 'margin'"):
        predict(network, Images(4), keep="margin")  # type: ignore[arg-type]

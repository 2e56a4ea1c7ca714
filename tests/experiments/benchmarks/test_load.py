"""The benchmark of many samples: what it measures and reports, not how fast anything is."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments.benchmarks import load as benchmark
from experiments.benchmarks.common import apart, resident
from experiments.benchmarks.load import LoadBenchmark, Synthetic
from experiments.cli import commands
from jaxcurv.data import IndexedSource, read

SETTINGS = LoadBenchmark(samples=(10, 20, 30), width=2, classes=12, probes=2, batch_size=8)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine torch's threads wait for each other far longer than they work."""
    monkeypatch.setattr(benchmark, "cores", lambda: 1)


def point(samples: int, **other: Any) -> dict[str, Any]:
    """A point on straight lines."""
    return {
        "samples": samples,
        "seconds": 2 + 0.01 * samples,
        "cpu_seconds": 3 + 0.02 * samples,
        "samples_per_second": samples / (2 + 0.01 * samples),
        "preparation_seconds": 5.0,
        "prepared_bytes": 400e6,
        "prepared_peak_bytes": 450e6,
        "resident_bytes": 480e6 + 50 * samples,
        "peak_bytes": 500e6 + 60 * samples,
        "table_bytes": 40 * samples,
        "file_bytes": 1000 + 30 * samples,
        "device": "a device",
        **other,
    }


def report(**other: Any) -> dict[str, Any]:
    points = [point(n, **other) for n in (100_000, 500_000, 1_000_000)]
    return {
        "works": {work: {"points": points, **benchmark.lines(points)} for work in benchmark.WORKS},
        "settings": {**SETTINGS.workload(), "samples": [1, 2, 3], "profile": benchmark.PROFILE},
        "cores": 2,
        "load_before": 0.1,
        "platform": "here",
        "versions": {"python": "3", "jax": "1", "torch": "2"},
    }


def printed(found: dict[str, Any]) -> str:
    """What is printed on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    benchmark.show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the source


def test_a_sample_is_a_function_of_its_index() -> None:
    source, longer = Synthetic(50, 8, 7), Synthetic(1_000_000, 8, 7)
    assert isinstance(source, IndexedSource)
    assert (len(source), len(longer)) == (50, 1_000_000)
    whole = read(source)
    assert whole.images.shape == (50, 8, 8, 3)
    assert len({image.tobytes() for image in whole.images}) == 50
    some = read(longer, [49, 3, 20])
    for row, position in enumerate((49, 3, 20)):
        assert source[position]["index"] == position
        for images in (whole.images[position], some.images[row], source[position]["image"]):
            np.testing.assert_array_equal(images, longer[position]["image"])
    for one in (source, longer):
        np.testing.assert_array_equal(one.indices, np.arange(len(one)))
        np.testing.assert_array_equal(one.labels, np.arange(len(one)) % 7)
    np.testing.assert_array_equal(whole.labels, source.labels)
    np.testing.assert_array_equal(whole.indices, source.indices)
    last = longer[999_999]
    assert (last["label"], last["index"]) == (999_999 % 7, 999_999)
    for position in (50, -1):
        with pytest.raises(IndexError, match=f"no sample {position} among 50"):
            source[position]


def test_images_are_the_same_everywhere_and_random() -> None:
    """NumPy promises the raw bits of Philox across releases and machines."""
    assert Synthetic(8, 8, 5)[7]["image"][0, 0].tolist() == [164, 251, 233]
    assert Synthetic(8, 3, 5)[7]["image"].shape == (3, 3, 3)  # no whole number of 8 bytes
    pixels = read(Synthetic(200, 8, 5)).images
    counts = np.bincount(pixels.ravel(), minlength=256)
    expected = pixels.size / 256
    assert np.sum(np.square(counts - expected)) / expected < 255 + 5 * math.sqrt(2 * 255)


# --- a point


def test_a_point() -> None:
    """Simulation alone: scoring compiles for long."""
    check_point(benchmark.measure("simulate", 30, SETTINGS), 30)


def test_a_process_of_its_own_has_not_this_one_s_memory() -> None:
    block = np.ones(300_000_000, np.uint8)
    here, there = resident(), apart(resident)
    assert there[1] < here[0] or math.isnan(here[0])
    del block


def check_point(found: dict[str, Any], samples: int) -> None:
    assert found.keys() == point(1).keys()
    assert found["samples"] == samples
    assert found["samples_per_second"] == pytest.approx(samples / found["seconds"])
    assert found["preparation_seconds"] > found["seconds"] > 0
    assert found["cpu_seconds"] > 0
    assert found["file_bytes"] > 0
    # No logits: those of 12 classes alone are 48 bytes.
    assert 20 * samples < found["table_bytes"] < (8 * 7 + 48) * samples
    if found["peak_bytes"] is not None:
        assert 50e6 < found["prepared_bytes"] <= found["prepared_peak_bytes"]
        # The kernel adds up its threads' counts only now and then: a later peak may look smaller.
        assert found["prepared_peak_bytes"] - 4e6 <= found["peak_bytes"] < 100e9
        assert 50e6 < found["resident_bytes"] <= found["peak_bytes"]
    json.dumps(found, allow_nan=False)


# --- lines


def test_a_line_through_points_on_one() -> None:
    points = [point(n) for n in (10, 20, 70)]
    found = benchmark.lines(points)
    assert found.keys() == {"seconds", "peak_bytes", "file_bytes"}
    for name, slope, intercept in (
        ("seconds", 0.01, 2),
        ("peak_bytes", 60, 500e6),
        ("file_bytes", 30, 1000),
    ):
        assert found[name]["slope"] == pytest.approx(slope)
        assert found[name]["intercept"] == pytest.approx(intercept)
        assert found[name]["r_squared"] == pytest.approx(1)
        assert found[name]["largest_deviation"] == pytest.approx(0, abs=1e-9)


def test_a_line_through_points_beside_it() -> None:
    points = [point(n, seconds=s) for n, s in ((0, 1.0), (1, 4.0), (2, 1.0))]
    found = benchmark.line(points, "seconds")
    assert found == {
        "slope": pytest.approx(0),
        "intercept": pytest.approx(2),
        "r_squared": pytest.approx(0),
        "largest_deviation": pytest.approx(1),  # 4 where the line has 2
    }


def test_what_does_not_grow_or_is_not_told() -> None:
    flat = benchmark.line([point(n, peak_bytes=5e8) for n in (1, 2, 3)], "peak_bytes")
    assert flat == {"slope": 0, "intercept": 5e8, "r_squared": None, "largest_deviation": 0}
    assert benchmark.line([point(1), point(2, peak_bytes=None), point(3)], "peak_bytes") is None


# --- the report


def test_tables_fit_a_terminal() -> None:
    text = printed(report())
    assert "…" not in text
    assert len(re.findall(r"(?m)^ 1,000,000 +10,002\.0 +100 +560 +160 +30\.0 *$", text)) == 2
    words = " ".join(text.split())
    assert "score, on a device: 10.000 ms a sample and 2.0 s; R² 1.00000, at most 0.0% off" in words
    assert "peak 500 MB and 60 bytes a sample" in words
    unknown = dict.fromkeys(("peak_bytes", "prepared_bytes"))
    assert printed(report(**unknown)).count("memory not told by this system") == 2


def test_figure_and_its_points(tmp_path: Path) -> None:
    for found in (report(), report(peak_bytes=None)):
        path = benchmark.draw(found, tmp_path / "load.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        rows = pd.read_csv(tmp_path / "load.csv")
        assert rows.groupby("work")["samples"].sum().to_dict() == {
            "score": 1_600_000,
            "simulate": 1_600_000,
        }


# --- the command


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": (10, 20)}, "at least 3 different counts"),
        ({"samples": (10, 20, 10)}, "at least 3 different counts"),
        ({"samples": (0, 10, 20)}, "each at least 1"),
        ({"classes": 1}, "classes at least 2"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N; got 'tpu'"),
    ],
)
def test_settings_that_measure_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "cuda:99"], "CUDA devices, not cuda:99: use --device cpu"),
        (["--json", "."], "is a folder: give --json a file's name"),
        (["--figures", "/proc/none"], "cannot write to /proc/none: choose another --figures"),
    ],
)
def test_what_cannot_start(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert commands.run(["benchmark", "load", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_failure_at_work_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(benchmark, "apart", full)
    assert commands.run(["benchmark", "load", "--samples", "1", "2", "3"]) == 1
    assert capsys.readouterr().err == "error: no space left\n"

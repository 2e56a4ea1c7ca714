"""The benchmark of simulated chips: what it reports, not how fast anything is."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import bridge
from bridge.chips import eight_profiles
from experiments.benchmarks import analog as benchmark
from experiments.benchmarks.analog import AnalogBenchmark, Contestant, Turn
from experiments.cli import commands
from jaxcurv.storage.checksums import read_json, write_json
from tests.shallow_resnet import replace_resnet18, resnet18

SETTINGS = AnalogBenchmark(
    width=4, image_size=8, batch_size=4, repeats=2, aihwkit_repeats=1, programmings=1
)
NOISY = ["wnoise", "adc+wnoise", "wnoise+pcm", "adc+wnoise+pcm"]
CHIPS = [
    *eight_profiles(),
    "pcm:compensated",
    *(f"{name}:per_mvm" for name in NOISY),
    *(f"{name}:per_mvm_pcm_read" for name in NOISY),
]


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    """A network of one block and one thread: on a busy machine torch's threads mostly wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "cores", lambda: 1)
        replace_resnet18(patch)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a small run from the command line."""
    path = tmp_path_factory.mktemp("benchmark") / "new" / "report.json"
    small = {"width": 4, "image-size": 8, "batch-size": 4, "repeats": 2, "aihwkit-repeats": 1}
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert commands.run(["benchmark", "analog", *flags, "--json", str(path)]) == 0
    return path


@pytest.fixture
def report(path: Path) -> Any:
    return read_json(path)


def printed(report: Any) -> str:
    """What is printed on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    benchmark.show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the report


def test_costs_of_every_chip_on_both_engines(report: Any) -> None:
    costs = report["cost_over_digital"]
    assert set(costs) == {*CHIPS, *(f"aihwkit:{name}" for name in CHIPS)}
    assert all(math.isfinite(cost) and cost > 0 for cost in costs.values())
    assert report["contestants"].keys() == {"digital", *costs}
    for name, one in report["contestants"].items():
        ms = one["milliseconds"]
        assert 0 < ms["lowest"] <= ms["median"] <= ms["highest"] < math.inf
        assert one["images_per_second"] == pytest.approx(4000 / ms["median"])
        if name != "digital":
            ratio = report["ratios"][name]
            assert ratio["median"] == costs[name]
            assert ratio["lowest"] <= ratio["median"] <= ratio["highest"]
            once = name.startswith("aihwkit:")
            assert (ratio["lowest"] == ratio["highest"]) or not once


def test_programming_takes_time(report: Any) -> None:
    assert report["programming_seconds"].keys() == {"aihwkit"}
    one = report["programming_seconds"]["aihwkit"]
    assert one["first"] > 0
    assert 0 < one["each"]["lowest"] <= one["each"]["median"] <= one["each"]["highest"]


def test_circumstances(report: Any) -> None:
    assert report["settings"] == {
        "width": 4,
        "batch_size": 4,
        "classes": 10,
        "image_size": 8,
        "repeats": 2,
        "aihwkit_repeats": 1,
        "engines": ["fast", "aihwkit"],
        "programmings": 5,
    }
    assert report["versions"]["torch"] == torch.__version__
    assert {"python", "aihwkit", "jaxcurv"} <= report["versions"].keys()
    assert report["threads"] == {"cores": 1, "torch": 1}
    assert report["device"]
    assert report["platform"]
    assert report["load_before"] is None or report["load_before"] >= 0


def test_chips_in_jax_are_compared_with_the_network_in_jax(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: eight_profiles()[name] for name in ("adc", "wnoise+pcm")}
    monkeypatch.setattr(benchmark, "chips", lambda: few)
    report = benchmark.measure_all(replace(SETTINGS, engines=("jax",)))
    assert report["cost_over_digital"].keys() == {"jax:adc", "jax:wnoise+pcm"}
    assert report["contestants"].keys() == {"jax:digital", "jax:adc", "jax:wnoise+pcm"}
    assert report["agreement"] == {}
    assert report["jax_device"] == report["device"]
    assert report["programming_seconds"].keys() == {"jax"}
    text = printed(report | {"versions": {"python": "3", "torch": "2", "aihwkit": "1"}})
    assert re.search(r"digital forward pass in JAX: [\d.]+ ms", text)
    assert "in PyTorch" not in text
    dearer = {name: 0.5 * cost for name, cost in report["cost_over_digital"].items()}
    assert len(benchmark.regressions(report, {"cost_over_digital": dearer})) == 2
    assert not benchmark.regressions(report, {"cost_over_digital": {"adc": 0.01}})


def test_agreement_of_the_engines(report: Any) -> None:
    """Chips whose noise is frozen predict alike; an ADC's rounding may fall either way."""
    agreement = report["agreement"]
    assert list(agreement) == [*eight_profiles(), "pcm:compensated"]
    for name, one in agreement.items():
        assert 0 <= one["equal_predictions"] <= 1
        assert one["relative_logit_error"] < (0.2 if "adc" in name else 1e-5)
    assert agreement["pcm:compensated"]["equal_predictions"] == 1


def test_agreement_is_relative_to_aihwkit() -> None:
    logits = {
        "adc": torch.tensor([[1.0, 2.0], [3.0, 0.0]]),
        "aihwkit:adc": torch.tensor([[1.0, 2.0], [0.0, 2.0]]),
        "ideal": torch.ones(2, 2),  # on one engine only
        "wnoise:per_mvm": torch.ones(2, 2),
        "aihwkit:wnoise:per_mvm": torch.ones(2, 2),
    }
    assert benchmark.agreement(logits) == {
        "adc": {
            "equal_predictions": 0.5,
            "relative_logit_error": pytest.approx(math.sqrt(13) / 3),
        }
    }


def test_tables_fit_a_terminal(report: Any) -> None:
    small = printed(report)
    assert "<=" not in small  # no goal is set for so small a network
    for one in report["contestants"].values():
        one["milliseconds"] = {"median": 54321.0, "lowest": 43210.0, "highest": 65432.0}
    for one in report["ratios"].values():
        one |= {"median": 123.4, "lowest": 101.2, "highest": 234.5}
    standard = printed({**report, "settings": report["settings"] | {"width": 64, "image_size": 32}})
    assert [standard.count(f"<= {goal} ") for goal in ("1.2", "2", "3", "5")] == [5, 4, 4, 4]
    assert standard.count("54,321.0") == 35  # the digital network's too
    for text in (small, standard):
        assert "…" not in text
        found = {name: len(re.findall(rf"(?m)^ {re.escape(name)} ", text)) for name in CHIPS}
        # On either engine, and where the noise is frozen, their agreement.
        assert found == {name: 2 if "per_mvm" in name else 3 for name in CHIPS}


def test_goals() -> None:
    wanted = benchmark.goals({"width": 64, "image_size": 32})
    assert list(wanted) == CHIPS
    assert {name: wanted[name] for name in ("ideal", "pcm:compensated", "adc+pcm")} == {
        "ideal": 1.2,
        "pcm:compensated": 1.2,
        "adc+pcm": 2,
    }
    assert wanted["wnoise+pcm:per_mvm"] == 3
    assert wanted["adc+wnoise:per_mvm_pcm_read"] == 5
    assert not benchmark.goals({"width": 16, "image_size": 32})


# --- the measurement


def test_cost_is_over_the_digital_runs_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def contestant(name: str, repeats: int) -> Contestant:
        return Contestant(repeats, lambda: order.append(name))  # type: ignore[arg-type, return-value]

    def seconds(run: Any) -> float:
        run()
        return float(len(order))

    monkeypatch.setattr(benchmark, "seconds", seconds)
    digital = contestant("d", 0).run
    turns = benchmark.measure(digital, {"a": contestant("a", 3), "b": contestant("b", 2)})
    assert "".join(order) == "dadbd" + "dbdad" + "dad"
    assert turns == {
        "a": [Turn(1, 2, 3), Turn(8, 9, 10), Turn(11, 12, 13)],
        "b": [Turn(3, 4, 5), Turn(6, 7, 8)],
    }
    assert Turn(before=1.0, seconds=6.0, after=3.0).cost == 3


def test_random_network_tells_images_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BatchNorm's statistics it does not, and agreement would mean nothing."""
    monkeypatch.setattr(bridge.weights, "resnet18", resnet18)
    workload = benchmark.make_workload(replace(SETTINGS, width=8, batch_size=32))
    again = benchmark.make_workload(replace(SETTINGS, width=8, batch_size=32))
    assert not workload.network.training
    logits = workload.network(workload.images)
    assert len(logits.argmax(1).unique()) > 3
    assert torch.equal(logits, again.network(again.images))
    assert workload.images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(workload.images, workload.calibration)


# --- against a baseline


@pytest.mark.parametrize(("factor", "code"), [(1e3, 0), (1e-3, 1)])
def test_regression_check(
    report: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    code: int,
) -> None:
    """Against an earlier run in which chips cost far more, and one in which they cost far less."""
    few = {name: profile for name, profile in benchmark.chips().items() if name in CHIPS[:3]}
    monkeypatch.setattr(benchmark, "chips", lambda: few)
    costs = report["cost_over_digital"]
    report["cost_over_digital"] = {
        name: factor * cost for name, cost in costs.items() if name.removeprefix("aihwkit:") in few
    }
    baseline, out = tmp_path / "earlier.json", tmp_path / "now.json"
    write_json(baseline, report)
    fast = replace(SETTINGS, engines=("fast",), repeats=1, json=out, baseline=baseline)
    assert benchmark.run(fast) == code
    printed = " ".join(capsys.readouterr().out.split())
    assert ("no cost is more than 25% above" in printed) == (code == 0)
    # AIHWKit's tiles were not asked for.
    assert printed.count("slower: ") == 3 * code
    now = json.loads(out.read_text())
    assert list(now["cost_over_digital"]) == CHIPS[:3]
    assert now["agreement"] == {}


def test_regression_of_a_quarter_is_still_allowed() -> None:
    def costs(engines: list[str], **costs: float) -> dict[str, Any]:
        return {"cost_over_digital": costs, "settings": {"engines": engines}}

    earlier = {"cost_over_digital": {"ideal": 2.0, "aihwkit:ideal": 4.0}}
    both = ["fast", "aihwkit"]
    tiles = {"aihwkit:ideal": 4.9}
    assert not benchmark.regressions(costs(both, ideal=2.49, new=9.0, **tiles), earlier)
    (line,) = benchmark.regressions(costs(both, ideal=2.6, **tiles), earlier)
    assert line == "ideal cost 2.000 and costs 2.600, 30% more (25% is allowed)"
    (line,) = benchmark.regressions(costs(both, **tiles), earlier)
    assert line == "ideal cost 2.000 and is not measured any more"
    assert not benchmark.regressions(costs(["fast"], ideal=2.0), earlier)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no baseline at .*: write one with --json"),
        ("{", "is damaged"),
        ("{}", "carries no checksum"),
        ({"width": 8, "classes": 7}, "other settings: give --width 8 --classes 7"),
        ("another device", "was measured on a toaster, this is"),
    ],
)
def test_baseline_that_cannot_be_compared(
    report: Any, tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "earlier.json"
    if content == "another device":
        write_json(path, {**report, "device": "a toaster"})
    elif isinstance(content, dict):
        write_json(path, {**report, "settings": report["settings"] | content})
    elif content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        benchmark.run(replace(SETTINGS, baseline=path))


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, r"at least 1 .*'repeats': 0"),
        ({"aihwkit_repeats": 0}, "'aihwkit_repeats': 0"),
        ({"classes": 1}, "classes at least 2; got {'classes': 1}"),
        ({"engines": ()}, "--engines needs at least one of fast, aihwkit and jax"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N; got 'gpu'"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalogBenchmark(**settings)


def test_what_cannot_be_done_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((ValueError, OSError), match="is a folder: give --json a file's name"):
        benchmark.run(replace(SETTINGS, json=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match="choose another --json"):
        benchmark.run(replace(SETTINGS, json=tmp_path / "file" / "report.json"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises((ValueError, OSError), match="CUDA devices, not cuda:1: use --device cpu"):
        benchmark.run(replace(SETTINGS, device="cuda:1"))


def test_unexpected_errors_at_work_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: AnalogBenchmark) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(benchmark, "make_workload", fail)
    assert commands.run(["benchmark", "analog"]) == 1
    error = capsys.readouterr().err
    assert error == "error: unexpected RuntimeError: out of memory (--debug shows where)\n"

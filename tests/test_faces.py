"""The public faces: what they show, what needs which package, and earlier names that still work."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import warnings

import pytest

import bridge
from tests.conftest import ROOT

SHOWN = {
    "jaxcurv": "Adaptive Curvature FiniteDifference GaussNewton HessianTrace HessianVector "
    "LowRankGaussNewton Moments OwnEstimator image_folder input_curvature logit_scores "
    "merge_scores score_dataset data engine estimators flip_probability margins models training",
    "jaxcurv.engine": "cross_entropy probe",
    "jaxcurv.training": "Recipe fine_tuning fit keep_trained restore_best",
    "bridge": "PROFILES Profile Router average_logits compare_predictors coverage failure_table "
    "fit_logits from_torch load_chip output_noise predict program recalibrate same_logits "
    "save_chip score simulate study to_jax to_torch weight_moments analog analysis chips graphs "
    "jax_chips routing weights",
    "bridge.analysis": "SystematicShare Trend VarianceShares analog_only_failures "
    "calibration_table compare_predictors cross_validated_logistic crossed_mean_interval deciles "
    "edge_ties expected_calibration_error failure_overlap failure_table failures_on_others "
    "gaussian_flip_probability logit_scores rate_interval systematic_share trend_test "
    "variance_shares wilson_interval within_class_rank",
    "bridge.chips": "ADC Chip Clipping DAC GivesMoments Hermes LogitFit MappedPairs Memory "
    "OutputNoise PCM PROFILES Pairs Profile ReRamCMO ReRamWan2022 SinglePair WeightNoise "
    "average_logits clipped_share coverage eight_profiles fit_logits layer_failures layer_report "
    "load_chip moment_state_dict most_sensitive named_profiles output_noise predict profile_of "
    "program recalibrate save_chip weight_moments",
    "bridge.graphs": "score to_jax",
    "bridge.jax_chips": "Chip Device Programmed analog carried layer_failures layer_report "
    "load_programmed output_noise predict predict_chips recalibrate save_programmed "
    "training_noise weight_moments with_digital_of",
    "bridge.routing": "Costs Routed Router RoutingResult Student calibration_size choose_threshold "
    "fit_student guaranteed_threshold load_student risk_at routed_at routing_baselines "
    "routing_curve save_student",
    "bridge.weights": "Checkpoint Comparison from_torch load_checkpoint load_weights resnet18 "
    "resnet50 same_logits save_weights to_torch twin",
}
EARLIER = {
    "jaxcurv": "Adaptive Curvature FiniteDifference GaussNewton HessianTrace HessianVector "
    "LowRankGaussNewton Moments OwnEstimator Published Recipe cross_entropy fit input_curvature "
    "keep_trained logit_scores margin_moments margin_table merge_scores probe restore_best "
    "score_dataset",
    "bridge": "ADC Checkpoint Chip Clipping Costs Hermes MappedPairs Memory PCM PROFILES Pairs "
    "Profile ReRamCMO ReRamWan2022 Routed Router SinglePair WeightNoise calibration_table "
    "choose_threshold clipped_share compare_predictors cross_validated_logistic eight_profiles "
    "expected_calibration_error failure_table failures flip_probability from_torch "
    "layer_failures layer_report load_checkpoint load_chip load_weights logit_scores "
    "moment_state_dict output_noise predict program resnet18 resnet50 routed_at "
    "routing_baselines routing_curve save_chip save_weights to_torch twin weight_moments",
    "bridge.failures": "Trend analog_only_failures deciles edge_ties failure_table trend_test "
    "wilson_interval within_class_rank",
}
"""All that version 0.1.0 showed or documented."""


def fields_of(kind: object) -> list[str]:
    """The fields of a dataclass or a named tuple; none of anything else."""
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        return [one.name for one in fields if one.init and not one.name.startswith("_")]
    return list(getattr(kind, "_fields", ()))


SETTINGS = [
    (package, name)
    for package, names in {**SHOWN, "jaxcurv.estimators": "Published BatchProblem"}.items()
    for name in names.split()
    if fields_of(getattr(importlib.import_module(package), name))
]


@pytest.mark.parametrize(("package", "name"), SETTINGS)
def test_help_of_a_class_explains_each_of_its_fields(package: str, name: str) -> None:
    """Strings below the fields are not shown by `help`."""
    kind = getattr(importlib.import_module(package), name)
    _, found, section = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    assert found
    explained = re.findall(
        r"^ {2,4}(\w+(?:, \w+)*): \S", section.partition("\n\n")[0], re.MULTILINE
    )
    assert [one for names in explained for one in names.split(", ")] == fields_of(kind)


MOVED = [
    (package, name)
    for package, names in EARLIER.items()
    for name in names.split()
    if name not in SHOWN.get(package, "").split()
]


@pytest.fixture(autouse=True)
def _not_imported_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import bridge.failures`, by another test, makes `bridge.failures` the module, which warns
    for each of its names."""
    monkeypatch.delitem(vars(bridge), "failures", raising=False)


@pytest.mark.parametrize("package", SHOWN)
def test_a_face_shows_its_names_and_has_them(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__) == sorted(SHOWN[package].split())
    for name in dir(module):
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = module.nothing_of_the_kind


@pytest.mark.parametrize(("package", "name"), MOVED, ids=".".join)
def test_an_earlier_name_is_what_the_warning_names(package: str, name: str) -> None:
    module = importlib.import_module(package)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(module, name)
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert warning.filename == __file__
    earlier, _, place = str(warning.message).partition(" now;")[0].partition(" is ")
    assert earlier == f"{package}.{name}"
    if place == "bridge.analysis":
        assert found is bridge.analysis
    else:
        namespace, _, attribute = place.rpartition(".")
        assert getattr(importlib.import_module(namespace), attribute) is found
        assert attribute in SHOWN.get(namespace, attribute).split()


@pytest.mark.parametrize(
    "line",
    [
        "bridge.ADC",
        "bridge.failures.trend_test",
        "jaxcurv.fit",
        "from bridge import Chip",
        "from bridge import failures",
        "from bridge.failures import trend_test",
        "from jaxcurv import Recipe",
    ],
)
def test_the_warning_points_at_the_user_s_line(line: str) -> None:
    code = compile(f"import bridge, jaxcurv\n\n{line}\n", "the user's script", "exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, {})
    assert {(warning.filename, warning.lineno) for warning in caught} == {("the user's script", 3)}


def test_the_module_of_an_earlier_name_has_no_others() -> None:
    earlier = importlib.import_module("bridge.failures")
    with pytest.raises(AttributeError, match=r"module 'bridge.failures' has no attribute 'percent"):
        _ = earlier.percentile_interval


def test_a_wheel_has_every_stub() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "*.pyi" in settings["tool"]["setuptools"]["package-data"]["*"]


def run(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_faces_are_imported_silently_and_without_frameworks() -> None:
    light = "{'jax', 'flax', 'torch', 'aihwkit', 'numpy', 'pandas'}"
    run(f"import sys, {', '.join(SHOWN)}; assert not {light} & sys.modules.keys()")


def test_the_analysis_and_the_curves_of_routing_need_no_framework() -> None:
    curves = "Costs RoutingResult choose_threshold routed_at routing_baselines routing_curve "
    curves += "calibration_size guaranteed_threshold risk_at"
    run(
        "import sys, bridge\n"
        "for name in dir(bridge.analysis): getattr(bridge.analysis, name)\n"
        f"for name in {curves.split()}: getattr(bridge.routing, name)\n"
        "assert not {'jax', 'flax', 'torch', 'aihwkit'} & sys.modules.keys()"
    )


def test_a_study_needs_no_framework() -> None:
    run(
        "import sys, bridge, jaxcurv\n"
        "bridge.study, jaxcurv.image_folder\n"
        "assert not {'jax', 'flax', 'torch', 'aihwkit', 'matplotlib', 'rich'} & sys.modules.keys()"
    )


def test_the_engine_and_the_training_need_no_torch() -> None:
    run(
        "import sys, jaxcurv\n"
        "for module in (jaxcurv, jaxcurv.engine, jaxcurv.training):\n"
        "    for name in dir(module): getattr(module, name)\n"
        "assert not {'torch', 'aihwkit', 'bridge'} & sys.modules.keys()"
    )


def test_without_torch_each_name_says_what_to_install() -> None:
    run(
        "import sys, bridge, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "sys.modules['torch'] = None\n"
        "for module, name in [(bridge, 'predict'), (bridge.chips, 'Chip'), (bridge.routing,\n"
        "        'Router'), (bridge.weights, 'twin'), (bridge, 'Chip')]:\n"
        "    try:\n"
        "        getattr(module, name)\n"
        "    except ModuleNotFoundError as error:\n"
        '        told = f".{name} needs torch, which is not installed: pip install"\n'
        "        assert told in str(error) and '[bridge]' in str(error), error\n"
        "        assert error.name == 'torch'\n"
        "    else:\n"
        "        raise SystemExit(f'{name} needs no torch')"
    )

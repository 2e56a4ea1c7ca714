"""Checkpoints of others, torchvision's among them, and the PyTorch twins of Flax ResNets."""

import argparse
import hashlib
import importlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file

import jaxcurv.models.resnet
from bridge import from_torch, to_torch
from bridge.weights import load_checkpoint, load_weights, save_weights, twin
from jaxcurv.models.resnet import ResNet
from tests.bridge.weights.test_state import (
    FLAX,
    TORCH,
    logits_of_flax,
    relative_error,
    shallow_resnet,
)
from tests.conftest import ROOT

# The names and shapes of torchvision's own state dicts, and the version that gave them.
LISTING = json.loads((ROOT / "tests" / "data" / "torchvision_resnets.json").read_text())
ZEROS = nnx.initializers.zeros


@pytest.fixture(scope="session")
def torchvision_models() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except Exception as error:  # RuntimeError where it was built for another torch
        pytest.skip(f"torchvision cannot be imported beside torch {torch.__version__}: {error}")


def weights() -> dict[str, torch.Tensor]:
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3),
        "bn1.running_var": torch.rand(4),
        "bn1.num_batches_tracked": torch.tensor(7),
    }


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == (torch.float32 if tensor.is_floating_point() else torch.int64)
        assert torch.equal(actual[name], tensor.to(actual[name].dtype)), name
        assert not actual[name].requires_grad


def images(size: int) -> np.ndarray:
    """float32 `[2, size, size, 3]`; an even size shows asymmetric padding."""
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def logits_of_torch(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".safetensors"])
def test_files(tmp_path: Path, suffix: str) -> None:
    state_dict, path = weights(), tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state_dict, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for source in (path, str(path)):
        checkpoint = load_checkpoint(source)
        assert_equal(checkpoint.state_dict, state_dict)
        assert checkpoint.origin == {"file": path.name, "sha256": digest}


def test_header_of_our_own_files_is_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_weights(first, weights(), {"stem": "cifar"})
    checkpoint = load_checkpoint(first)
    assert checkpoint.origin["header"] == {"stem": "cifar"}
    save_weights(second, checkpoint.state_dict, {"checkpoint": checkpoint.origin})
    assert load_weights(second)[1] == {"checkpoint": checkpoint.origin}


def test_another_program_s_metadata_is_no_header(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a.safetensors", {"header": "not JSON", "format": "pt"})
    assert "header" not in load_checkpoint(tmp_path / "a.safetensors").origin


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state_dict: {"state_dict": state_dict, "epoch": 90, "optimizer": {"lr": 0.1}},
        lambda state_dict: {"model": state_dict, "model_ema": {}, "epoch": 3},
        lambda state_dict: {f"module.{name}": tensor for name, tensor in state_dict.items()},
        lambda state_dict: {"model": {f"module.{n}": t for n, t in state_dict.items()}},
        lambda state_dict: {n: torch.nn.Parameter(t, t.ndim > 0) for n, t in state_dict.items()},
    ],
    ids=["state_dict", "model", "module.", "model of module.", "parameters"],
)
def test_what_training_scripts_save(tmp_path: Path, wrap: Callable) -> None:
    state_dict, path = weights(), tmp_path / "model.pth"
    torch.save(wrap(state_dict), path)
    assert_equal(load_checkpoint(path).state_dict, state_dict)
    torch.save(wrap(state_dict), path, _use_new_zipfile_serialization=False)
    assert_equal(load_checkpoint(path).state_dict, state_dict)


def averaged() -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in weights().items()}


BESIDE: dict[str, tuple[str, Callable[[], Any]]] = {
    "torchvision's and DeiT's": ("model_ema", averaged),
    "timm's": ("state_dict_ema", averaged),
    "the best of a training": ("best_state", lambda: {"epoch": 3, "state": averaged()}),
    "an average of parameters alone": (
        "ema",
        lambda: {"decay": 0.9, "shadow": {n: t for n, t in averaged().items() if t.ndim > 1}},
    ),
    "PyTorch's average": (
        "swa",
        lambda: (
            {"n_averaged": torch.tensor(3)}
            | {f"module.{name}": tensor for name, tensor in averaged().items()}
        ),
    ),
    "a list of several": ("last", lambda: [weights(), averaged()]),
}


@pytest.mark.parametrize("case", BESIDE)
def test_other_weights_of_the_same_network_are_refused(tmp_path: Path, case: str) -> None:
    name, make = BESIDE[case]
    path = tmp_path / "a.pth"
    for content in (
        {"model": weights(), name: make()},
        {"checkpoint": {"state_dict": weights()}, "epoch": 3, name: make()},
        {"state_dict": {f"model.{n}": t for n, t in weights().items()}, name: make()},
    ):
        torch.save(content, path)
        with pytest.raises(
            ValueError, match=rf"holds weights under '\w+' and '{name}': .*\[NAME\]"
        ):
            load_checkpoint(path)


@pytest.mark.parametrize("case", ["the same", "optimiser's", "another network's", "arrays"])
def test_what_may_be_beside_the_weights(tmp_path: Path, case: str) -> None:
    state_dict = weights()
    beside = {
        "the same": {"model_ema": state_dict},
        "optimiser's": {"optimizer": {"momentum": averaged()}},
        "another network's": {"discriminator": {"conv1.weight": torch.ones(7, 3)}},
        "arrays": {"class_weights": torch.ones(3), "history": [{"loss": torch.ones(3)}]},
    }[case]
    torch.save({"model": state_dict, **beside}, tmp_path / "a.pth")
    assert_equal(load_checkpoint(tmp_path / "a.pth").state_dict, state_dict)


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    state_dict = {"module.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    torch.save(state_dict, tmp_path / "a.pth")
    assert_equal(load_checkpoint(tmp_path / "a.pth").state_dict, state_dict)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    state_dict, path = {"a": torch.randn(3, 2).to(dtype)}, tmp_path / f"half{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state_dict, path)
    assert_equal(load_checkpoint(path).state_dict, state_dict)


class MakesAFile:
    """Unpickling one creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["bare", "beside", "inside"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, place: str, legacy: bool) -> None:
    path, trace = tmp_path / "malicious.pth", tmp_path / "trace"
    evil = MakesAFile(trace)
    content = {
        "bare": evil,
        "beside": {"state_dict": weights(), "args": evil},
        "inside": weights() | {"fc.weight": evil},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        ValueError, match=r"malicious\.pth holds a Python object \(\S*open\).*run code"
    ):
        load_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have
    assert trace.exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_bare_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    path, trace = tmp_path / "malicious.pth", tmp_path / "trace"
    path.write_bytes(pickle.dumps(MakesAFile(trace), protocol))
    with pytest.raises(ValueError, match=r"malicious\.pth"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": weights(), "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
    ],
    ids=["whole module", "arguments"],
)
def test_python_objects_are_refused_with_the_cure(tmp_path: Path, content: Any, name: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"\({name}\).*refused.*torch\.save\(model\.state_dict"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"<html>404</html>", None])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:  # cut short
        (save_file if name.endswith("safetensors") else torch.save)({"a": torch.ones(999)}, path)
        content = path.read_bytes()[:-2000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is (no|not a) readable"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore")  # of torch, on writing one
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match="TorchScript archive"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list in place of a state dict"),
        (torch.ones(1), "holds a Tensor in place"),
        ({}, "holds nothing in place"),
        ({"state_dict": {}}, "holds nothing in place"),
        (
            {"generator": weights(), "epoch": 3},
            r"'generator' \(dict of 3\), 'epoch' \(int\); .* 'state_dict' or",
        ),
        ({"model": {1: torch.ones(1)}}, r"1 \(Tensor\)"),
        ({"a": torch.ones(1), "q": torch.ones(1).to(torch.int8)}, r"q \(torch\.int8\).*quantis"),
        ({"a": torch.ones(1), "fc.qweight": torch.ones(1).int()}, r"fc\.qweight .*quantis"),
        ({"a": torch.ones(1), "fc.bias": torch.ones(1).int()}, r"fc\.bias .*quantis"),
        ({"a": torch.ones(1), "conv.weight": torch.ones(1) > 0}, r"conv\.weight .*quantis"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, r"a \(torch\.complex64\)"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth .*{message}"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("safe", [False, True])
def test_masks_and_ids_are_no_quantised_weights(tmp_path: Path, safe: bool) -> None:
    buffers = {"attn.mask": torch.ones(2, 2).tril() > 0, "ids": torch.arange(3).int()}
    content = {"fc.weight": torch.ones(2, 3), **buffers}
    path = tmp_path / ("a.safetensors" if safe else "a.pth")
    (save_file if safe else torch.save)(content, path)
    found = load_checkpoint(path).state_dict
    assert found.keys() == content.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in content.items())


NUMBERS = {
    "epoch": 3,
    "best": np.float64(0.9),
    "step": np.int64(7),
    "right": np.bool_(True),
    "rate": np.float32(1e-3),
    "name": np.str_("resnet"),
    "history": [np.float32(1.0), {"loss": np.arange(3.0)}],
}
"""What scripts keep beside the weights."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("numpy", ["numpy._core", "numpy.core"], ids=["numpy 2", "numpy 1"])
def test_numpy_values_beside_the_weights(tmp_path: Path, numpy: str, legacy: bool) -> None:
    state_dict, path = weights(), tmp_path / "a.pth"
    torch.save({"model": state_dict} | NUMBERS, path, _use_new_zipfile_serialization=not legacy)
    if numpy == "numpy.core":
        if not legacy:
            pytest.skip("an archive has checksums; the pickle within is the same")
        path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert_equal(load_checkpoint(path).state_dict, state_dict)


@pytest.mark.parametrize(
    "number", [3, 0.5, "resnet", None, True, np.float64(1), np.int64(2), np.bool_(True)]
)
def test_numbers_and_words_among_the_tensors_are_left_out(tmp_path: Path, number: Any) -> None:
    state_dict = weights()
    for content in ({"epoch": number} | state_dict, {"net": state_dict | {"acc": number}}):
        torch.save(content, tmp_path / "a.pth")
        assert_equal(load_checkpoint(tmp_path / "a.pth").state_dict, state_dict)


def test_no_numpy_function_sees_the_file_s_bytes(tmp_path: Path) -> None:
    """An array of objects is a pickle of its own, which NumPy would load."""
    path, trace = tmp_path / "malicious.pth", tmp_path / "trace"
    array = np.array([MakesAFile(trace)], object)
    for content in (array, {"model": weights(), "a": array}, {"a": array.astype("O")[()]}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"malicious\.pth holds a Python object"):
            load_checkpoint(path)
        assert not trace.exists()


KEYS = ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"]


@pytest.mark.parametrize("key", [*KEYS, "params", "net_state_dict"])
def test_where_scripts_keep_the_weights(tmp_path: Path, key: str) -> None:
    state_dict, path = weights(), tmp_path / "a.pth"
    for content in (
        {"epoch": 3, key: state_dict, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        {"checkpoint": {key: state_dict}},
        {key: {"state_dict": state_dict}, "acc": np.float64(0.5)},
        {key: state_dict, "config": {"model": "resnet18", "weights": [0.5, 0.5]}},
        {key: list(state_dict.items())},
        {key: state_dict, "rng": torch.get_rng_state(), "order": np.arange(3)},
        {key: state_dict, "params" if key == "model" else "model": {"width": torch.tensor(3)}},
        {key: [state_dict]},
        {"model" if key == "net" else "net": {"width": 64}, key: state_dict},
    ):
        torch.save(content, path)
        assert_equal(load_checkpoint(path).state_dict, state_dict)


PREFIXES = {
    "state_dict": ["model.", "module.model.", "model._orig_mod.", "_orig_mod.model.module."],
    "model": ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."],
    None: ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module._orig_mod."],
}


@pytest.mark.parametrize(
    ("key", "prefix"), [(key, one) for key, some in PREFIXES.items() for one in some]
)
def test_prefixes_of_wrappers(tmp_path: Path, key: str | None, prefix: str) -> None:
    state_dict, path = weights(), tmp_path / "a.ckpt"
    named = {prefix + name: tensor for name, tensor in state_dict.items()}
    torch.save(named if key is None else {key: named, "epoch": 1}, path)
    assert_equal(load_checkpoint(path).state_dict, state_dict)
    assert load_checkpoint(path, prefix="").state_dict.keys() == named.keys()
    assert_equal(load_checkpoint(path, prefix=prefix).state_dict, state_dict)


def test_wrappers_within_names_and_averaged_models(tmp_path: Path) -> None:
    state_dict, path = weights(), tmp_path / "a.pth"
    torch.save({name.replace(".", "._orig_mod.", 1): t for name, t in state_dict.items()}, path)
    assert_equal(load_checkpoint(path).state_dict, state_dict)
    torch.save(torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 3)).state_dict(), path)
    assert load_checkpoint(path).state_dict.keys() == {"weight", "bias"}


def test_a_network_s_own_attribute_model_stays(tmp_path: Path) -> None:
    """Lightning writes under "state_dict"; elsewhere the name may be the network's own."""
    state_dict = weights()
    named = {f"model.{name}": tensor for name, tensor in state_dict.items()}
    for content in (named, {"net": named}, {"model_state_dict": named}):
        torch.save(content, tmp_path / "a.pth")
        assert_equal(load_checkpoint(tmp_path / "a.pth").state_dict, named)
    both = named | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": both}, tmp_path / "a.pth")
    assert_equal(load_checkpoint(tmp_path / "a.pth").state_dict, both)
    assert_equal(load_checkpoint(tmp_path / "a.pth", prefix="model.").state_dict, state_dict)
    with pytest.raises(ValueError, match=r"no name that begins with 'net\.'.*criterion\.weight"):
        load_checkpoint(tmp_path / "a.pth", prefix="net.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"generator": weights(), "discriminator": weights(), "epoch": 3},
            r"'generator' \(dict of 3\), 'discriminator' \(dict of 3\), 'epoch' \(int\)"
            r".*torch\.save.*\[NAME\]",
        ),
        ({"state_dict": [weights(), weights()]}, r"a list of 2 state dicts under 'state_dict'"),
        ({"state_dict": [torch.ones(2)]}, r"'state_dict' \(list of 1\)"),
        ({"net": weights(), "model": {"a": torch.ones(2)}}, "weights under 'model' and 'net'"),
        ({"G": weights(), "model": {"width": 64}}, r"'G' \(dict of 3\), 'model' \(dict of 1\)"),
        ({"state_dict": np.float64(3)}, r"'state_dict' \(NumPy value\)"),
        ({"conv.weight": np.ones((2, 2))}, r"'conv\.weight' \(NumPy array\).*torch\.from_numpy"),
        (weights() | {"fc.bias": np.ones(2)}, r"'fc\.bias' \(NumPy array\).*torch\.from_numpy"),
        (list(weights().values()), "holds a list in place of a state dict"),
        (np.ones(3), "holds a NumPy array in place of a state dict"),
        ({str(i): {} for i in range(99)}, r"'0' \(dict of 0\).*and 79 more"),
    ],
)
def test_the_file_s_own_keys_are_shown(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth .*{message}"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": {"a": torch.ones(1)}}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth .*'model'"):
        load_checkpoint(tmp_path / "a.pth")


def test_the_same_weights_twice_are_no_question(tmp_path: Path) -> None:
    state_dict = weights()
    torch.save({"net": state_dict, "model": state_dict}, tmp_path / "a.pth")
    assert_equal(load_checkpoint(tmp_path / "a.pth").state_dict, state_dict)


@pytest.mark.filterwarnings("ignore")  # of torch, on writing them
def test_archives_of_others_are_told_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval()
    for scripted in (torch.jit.script(module), torch.jit.trace(module, torch.ones(1, 2))):
        scripted.save(str(path))
        with pytest.raises(ValueError, match=r"a TorchScript archive.*torch\.jit\.load\("):
            load_checkpoint(path)
    scripted = torch.jit.load(str(path))  # the cure
    torch.save(scripted.state_dict(), path)
    assert_equal(load_checkpoint(path).state_dict, module.state_dict())
    with path.open("wb") as file:
        torch.export.save(torch.export.export(module, (torch.ones(1, 2),)), file)
    with pytest.raises(ValueError, match=r"program that torch\.export.*torch\.export\.load\("):
        load_checkpoint(path)
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(ValueError, match=r"NumPy archive.*torch\.from_numpy"):
        load_checkpoint(path)


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "pytorch_model.bin")
    assert load_checkpoint(tmp_path / "pytorch_model.bin").state_dict.keys() == weights().keys()


def test_paths_without_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; give a \.pth"):
        load_checkpoint(tmp_path)
    for source in (tmp_path / "resnet18", str(tmp_path / "resnet18"), "a.pth", "resnet18:"):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load_checkpoint(source)


def test_names_need_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"no file.*'resnet18'.*install the torchvision"):
        load_checkpoint("resnet18:IMAGENET1K_V1")


def test_a_torchvision_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match=r"beside torch .*nms does not exist.*same pack"):
        load_checkpoint("resnet18")


@pytest.mark.usefixtures("torchvision_models")
def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"called 'resnet19'; known names are .*resnet18"):
        load_checkpoint("resnet19")
    with pytest.raises(ValueError, match=r"'V3'; known are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        load_checkpoint("resnet50:V3")


@pytest.fixture
def published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchvision_models: ModuleType
) -> Path:
    """What stands for the server's file of resnet50:IMAGENET1K_V2; torch.hub's cache is empty."""
    torch.save(weights(), tmp_path / "new.pth")
    digest = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()
    path = (tmp_path / "new.pth").rename(tmp_path / f"resnet50-{digest[:8]}.pth")
    entry = torchvision_models.ResNet50_Weights.IMAGENET1K_V2.value
    monkeypatch.setattr(entry, "url", path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return path


@pytest.mark.parametrize("source", ["resnet50", "resnet50:IMAGENET1K_V2"])
def test_published_weights(published: Path, source: str) -> None:
    checkpoint = load_checkpoint(source)
    assert_equal(checkpoint.state_dict, torch.load(published, weights_only=True))
    origin = checkpoint.origin
    assert len(origin["class_names"]) == 1000
    assert origin["class_names"][0] == "tench"
    assert {key: value for key, value in origin.items() if key != "class_names"} == {
        "weights": "resnet50:IMAGENET1K_V2",
        "url": published.as_uri(),
        "file": published.name,
        "sha256": hashlib.sha256(published.read_bytes()).hexdigest(),
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "preprocessing": {
            "resize_size": [232],
            "crop_size": [224],
            "interpolation": "bilinear",
        },
    }
    json.dumps(origin, allow_nan=False)
    published.unlink()
    assert load_checkpoint(source).origin == origin  # from the cache


def test_a_failed_download_says_where_the_file_belongs(published: Path) -> None:
    published.unlink()
    with pytest.raises(
        OSError, match=rf"cannot download .* put it at .*/cache/.*/{published.name}"
    ):
        load_checkpoint("resnet50")


def test_a_download_with_another_hash_is_refused(published: Path) -> None:
    published.write_bytes(published.read_bytes() + b"0")
    with pytest.raises(OSError, match=r"cannot download.*hash"):
        load_checkpoint("resnet50")


def test_a_damaged_file_in_the_cache_is_refused(published: Path) -> None:
    load_checkpoint("resnet50")
    (cached,) = published.parent.glob("cache/**/*.pth")
    cached.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is damaged: its SHA-256 .*; delete it"):
        load_checkpoint("resnet50")


def random_state_dict(shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Values that are trivial nowhere, BatchNorm's included, and keep activations of order one."""
    generator = torch.Generator().manual_seed(0)
    state_dict = {}
    for name, shape in shapes.items():
        normal = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state_dict[name] = torch.tensor(100)
        elif len(shape) > 1:
            state_dict[name] = normal / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            state_dict[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state_dict[name] = 0.3 * normal
    return state_dict


def of_torchvision(state_dict: dict[str, torch.Tensor], name: str) -> nnx.Module:
    """The Flax model of torchvision's sizes with these weights."""
    model = nnx.eval_shape(lambda: FLAX[name](rngs=nnx.Rngs(0)))
    model.eval()
    return from_torch(state_dict, model)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_s_state_dicts_fit_both_ways(tmp_path: Path, name: str) -> None:
    shapes = {key: tuple(shape) for key, shape in LISTING[name].items()}
    state_dict = {
        key: torch.tensor(100) if key.endswith("num_batches_tracked") else torch.zeros(shape)
        for key, shape in shapes.items()
    }
    torch.save(state_dict, tmp_path / f"{name}.pth")
    model = of_torchvision(load_checkpoint(tmp_path / f"{name}.pth").state_dict, name)
    exported = to_torch(model)
    assert {key: tuple(tensor.shape) for key, tensor in exported.items()} == shapes
    with torch.device("meta"):
        reference = TORCH[name]().state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in reference.items()} == shapes


def assert_logits_are_torchvision_s(models: ModuleType, name: str) -> None:
    reference = getattr(models, name)()
    shapes = {key: list(tensor.shape) for key, tensor in reference.state_dict().items()}
    assert shapes == LISTING[name]
    reference.load_state_dict(random_state_dict(shapes))
    model = of_torchvision(reference.state_dict(), name)
    pixels = images(64)
    expected = logits_of_torch(reference.eval(), pixels)
    assert np.std(expected, axis=0).min() > 0
    assert relative_error(logits_of_flax(model, pixels), expected) < 1e-4

    other = getattr(models, name)().eval()
    other.load_state_dict(to_torch(model))  # strictly
    np.testing.assert_array_equal(logits_of_torch(other, pixels), expected)
    assert relative_error(logits_of_torch(twin(model), pixels), expected) < 1e-5


def test_logits_are_torchvision_s(torchvision_models: ModuleType) -> None:
    assert_logits_are_torchvision_s(torchvision_models, "resnet18")


@pytest.mark.parametrize(
    ("block", "stem", "size"), [("BasicBlock", "cifar", 20), ("Bottleneck", "imagenet", 33)]
)
def test_twin_of_other_depths_channels_and_epsilons(block: str, stem: str, size: int) -> None:
    model = shallow_resnet(
        depths=(1, 2, 1, 1),
        block=getattr(jaxcurv.models.resnet, block),
        num_classes=5,
        stem=stem,
        width=3,
        in_channels=1,
    )
    model.layer2[1].bn1.epsilon = 0.1
    model.train()
    before = torch.get_rng_state()
    network = twin(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.bn1.use_running_average
    assert not any(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    depths = [len(getattr(network, f"layer{stage}")) for stage in (1, 2, 3, 4)]
    assert depths == [1, 2, 1, 1]
    assert type(network.layer1[0]).__name__ == block
    model.eval()
    pixels = images(size)[..., :1]
    expected = logits_of_flax(model, pixels)
    assert relative_error(logits_of_torch(network, pixels), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        (
            "conv1",
            lambda rngs: nnx.Conv(3, 4, (5, 5), kernel_init=ZEROS, rngs=rngs),
            "no convolution conv1 of 7x7",
        ),
        ("fc", lambda rngs: nnx.List([]), "no linear layer fc"),
        (
            "fc",
            lambda rngs: nnx.Linear(16, 7, kernel_init=ZEROS, rngs=rngs),
            r"fc\.weight has shape \(7, 16\), not \(7, 32\)",
        ),
        ("layer4", lambda rngs: nnx.List([]), r"fc\.weight has shape \(7, 32\), not \(7, 16\)"),
        ("bn1", lambda rngs: nnx.List([]), r"missing bn1\.weight \(4,\); missing bn1\.bias"),
        (
            "extra",
            lambda rngs: nnx.Linear(2, 2, kernel_init=ZEROS, rngs=rngs),
            r"unexpected extra\.bias; unexpected",
        ),
        ("norm", lambda rngs: nnx.LayerNorm(3, rngs=rngs), "only convolution, linear and Batch"),
    ],
)
def test_twin_refuses_what_is_no_resnet(name: str, layer: Callable, message: str) -> None:
    model = shallow_resnet(depths=(1, 1, 1, 1))
    setattr(model, name, layer(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        twin(model)


def test_twin_refuses_a_resnet_with_other_logits() -> None:
    model = shallow_resnet()
    model.layer2[0].conv1.padding = "SAME"
    with pytest.raises(ValueError, match=r"other logits than torchvision's.*padding"):
        twin(model)
    model = shallow_resnet()
    model.layer2[0].conv1.strides, model.layer2[0].conv2.strides = 1, 2
    with pytest.raises(ValueError, match=r"other logits than torchvision's.*strides"):
        twin(model)
    model = shallow_resnet(dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"other logits than torchvision's.*float32 is needed"):
        twin(model)


@pytest.mark.parametrize(
    ("stem", "pooled"),
    [
        ("cifar", lambda x: x.max((1, 2))),
        ("imagenet", lambda x: x.max((1, 2))),
        ("imagenet", lambda x: jnp.cbrt((x**3).mean((1, 2)))),
        ("imagenet", lambda x: x[:, x.shape[1] // 2, x.shape[2] // 2]),
    ],
    ids=["maximum", "maximum of few pixels", "generalised mean", "centre"],
)
def test_twin_refuses_a_resnet_with_another_last_pooling(
    stem: str, pooled: Callable[[jnp.ndarray], jnp.ndarray]
) -> None:
    class OtherPooling(ResNet):
        def __call__(self, images: jnp.ndarray) -> jnp.ndarray:
            x = jax.nn.relu(self.bn1(self.conv1(images)))
            if self.max_pool:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                for block in stage:
                    x = block(x)
            return self.fc(pooled(x))

    model = shallow_resnet(depths=(1, 1, 1, 1), stem=stem)
    model.__class__ = OtherPooling
    with pytest.raises(ValueError, match=r"other logits than torchvision's"):
        twin(model)


@pytest.mark.parametrize("dilation", [(2, 1), (1, 2)])
def test_twin_refuses_a_dilated_last_stage(dilation: tuple[int, int]) -> None:
    model = shallow_resnet(depths=(1, 1, 1, 1), stem="imagenet")
    last = model.layer4[0].conv2
    last.kernel_dilation, last.padding = dilation, tuple((width, width) for width in dilation)
    with pytest.raises(ValueError, match=r"other logits than torchvision's"):
        twin(model)


def test_twin_refuses_other_outputs_and_bad_weights() -> None:
    class WithFeatures(type(shallow_resnet())):
        def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
            return super().__call__(x)[:, :3]

    model = shallow_resnet()
    model.__class__ = WithFeatures
    with pytest.raises(ValueError, match=r"gives \(2, 3\) for two images and not logits \(2, 7\)"):
        twin(model)
    model = shallow_resnet()
    model.fc.bias[...] = model.fc.bias[...].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"non-finite weights in fc\.bias"):
        twin(model)

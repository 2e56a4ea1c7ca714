"""Checkpoints of others: PyTorch and safetensors files, and torchvision's published weights.

No code from a checkpoint is ever run.
"""

import difflib
import hashlib
import importlib
import os
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bridge.weights.archives import is_safetensors, unpickle
from bridge.weights.entries import tensors_of
from bridge.weights.files import content_hash, parse_header
from jaxcurv.storage.checksums import HEADER, check, take_checksum

_NAME = re.compile(r"[A-Za-z0-9_]+(:[A-Za-z0-9_]+)?")
_DTYPES = {  # from the file's to ours; anything else is quantised, a mask or the like
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float32,
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.bool: torch.bool,
}
_BUFFERS = (torch.int32, torch.bool)  # of masks and position ids; a weight of these is quantised
_SHARED = 4  # names that may share a tensor, such as an embedding that is also the output layer


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights and where they come from.

    Attributes:
      state_dict: CPU tensors by name, float32; counters, ids and masks are int64, int32 or bool.
      origin: plain JSON, to be part of a header of `save_weights`. "file" and "sha256" always; the
        "header" of a file that `save_weights` wrote; for published weights "weights" (the name
        that `load_checkpoint` takes), "url", "class_names", "normalisation" ("mean" and "std" of
        each channel, on the scale 0..1) and "preprocessing" ("resize_size" and "crop_size" in
        pixels, "interpolation").
    """

    state_dict: dict[str, torch.Tensor]
    origin: dict[str, Any]


def load_checkpoint(source: str | os.PathLike[str], *, prefix: str | None = None) -> Checkpoint:
    """Reads the weights of a file, or torchvision's published weights by name.

    Half and double precision become float32. Numbers and words beside the tensors are left out.
    Other weights of the same network in the file, such as averaged ones ("model_ema"), are refused:
    which of them were evaluated cannot be known.

    Args:
      source: one of

        - a `.safetensors` file;
        - any other file: what `torch.save` wrote, a state dict or a training checkpoint with one
          (a mapping, a list of names with tensors, or a list of one of them) under "state_dict",
          "model_state_dict", "model_state", "model", "net_state_dict", "net", "network", "weights",
          "params" or "checkpoint". One with Python objects beside tensors, plain containers and
          NumPy's values is refused, since reading them runs code from the file; so are TorchScript
          and exported programs;
        - a name such as "resnet18" (torchvision's default weights) or "resnet50:IMAGENET1K_V2",
          where no file is called so. Weights are downloaded once, to torch.hub's cache.

      prefix: what names of a file begin with; only these entries are taken, without it. None takes
        off what wrappers add: "_orig_mod." (`torch.compile`) anywhere and, where all names have it,
        "module." (`DataParallel`) and under "state_dict" also "model." (Lightning). "" leaves the
        names as they are.

    Raises:
      FileNotFoundError: no such file.
      ModuleNotFoundError: published weights are asked for and torchvision cannot be imported.
      OSError: the download failed.
      ValueError: a damaged file, one that would run code, no state dict in it or several, tensors
        that are not floating-point weights, or an unknown name.
    """
    path = Path(source)
    if path.is_file():
        return _read(path, prefix)
    if isinstance(source, str) and _NAME.fullmatch(source):
        return _read_published(source)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a .pth, .pt or .safetensors file")
    raise FileNotFoundError(
        f"no checkpoint at {path}: give an existing .pth or .safetensors file, or the name of "
        "published weights such as resnet18:IMAGENET1K_V1"
    )


def _read(path: Path, prefix: str | None, hash_prefix: str = "") -> Checkpoint:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(hash_prefix):
        raise ValueError(
            f"{path} is damaged: its SHA-256 begins with {digest[: len(hash_prefix)]}, not "
            f"{hash_prefix}; delete it and run again"
        )
    origin: dict[str, Any] = {"file": path.name, "sha256": digest}
    if not is_safetensors(path):
        return Checkpoint(_weights(unpickle(path), path, prefix), origin)
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file, replace it: {error}"
        ) from error
    header, found = parse_header(metadata), take_checksum(metadata)
    if header is not None or found:  # of ours: another program's file has neither
        described = metadata.get(HEADER, "")
        check(path, found, lambda: content_hash(content, described))
        origin["header"] = header
    return Checkpoint(_weights(content, path, prefix), origin)


def _weights(content: Any, path: Path, prefix: str | None) -> dict[str, torch.Tensor]:
    """The state dict in the content of a file, as `Checkpoint` has it."""
    tensors = tensors_of(content, path, prefix)
    unfit = [
        f"{name} ({tensor.dtype})"
        for name, tensor in tensors.items()
        if tensor.dtype not in _DTYPES
        or (tensor.dtype in _BUFFERS and name.endswith(("weight", "bias", "zeros", "scales")))
    ]
    if unfit:
        raise ValueError(
            f"{path} holds tensors that are no floating-point weights: {', '.join(unfit)}; give "
            "the checkpoint from before quantisation"
        )
    elsewhere = [
        name for name, tensor in tensors.items() if tensor.is_meta or tensor.layout != torch.strided
    ]
    if elsewhere:
        raise ValueError(
            f"{path} holds tensors without values or sparse ones: {', '.join(elsewhere)}; write "
            "dense tensors with torch.save(model.state_dict(), ...)"
        )
    size, told = path.stat().st_size, sum(tensor.nbytes for tensor in tensors.values())
    if told > _SHARED * size:
        raise ValueError(
            f"{path} holds tensors of {told:,} bytes in {size:,}, most of them copies: refused; "
            "write the tensors themselves, each .contiguous(), with torch.save"
        )
    return {name: tensor.detach().to(_DTYPES[tensor.dtype]) for name, tensor in tensors.items()}


def _read_published(source: str) -> Checkpoint:
    name, _, version = source.partition(":")
    weights = _published(name, version)
    transforms = weights.transforms()
    origin = {
        "weights": f"{name}:{weights.name}",
        "url": weights.url,
        "class_names": list(weights.meta["categories"]),
        "normalisation": {"mean": list(transforms.mean), "std": list(transforms.std)},
        "preprocessing": {
            "resize_size": list(transforms.resize_size),
            "crop_size": list(transforms.crop_size),
            "interpolation": transforms.interpolation.value,
        },
    }
    checkpoint = _download(weights.url)
    return Checkpoint(checkpoint.state_dict, origin | checkpoint.origin)


def _published(name: str, version: str) -> Any:
    """The member of torchvision's enumeration; an empty version stands for the default."""
    try:
        models = importlib.import_module("torchvision.models")
    except Exception as error:  # RuntimeError and others where it was built for another torch
        raise ModuleNotFoundError(
            f"no file is called {name!r}, and published weights need torchvision, which cannot be "
            f"imported beside torch {torch.__version__} ({error}): install the torchvision that "
            "belongs to it, from the same package index, or give a .pth or .safetensors file",
            name="torchvision",
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0)
        raise ValueError(
            f"no file and no torchvision classifier is called {name!r}; known names are "
            f"{', '.join(close)} and others (torchvision.models.list_models())"
        )
    versions = models.get_model_weights(name).__members__
    weights = versions.get(version or "DEFAULT")
    if weights is None:
        raise ValueError(f"{name} has no weights {version!r}; known are {', '.join(versions)}")
    return weights


def _download(url: str) -> Checkpoint:
    """Reads a file from torch.hub's cache, loaded first where absent.

    Its name ends with the first digits of its SHA-256, which are checked.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    hash_prefix = digits[1] if digits else ""
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix)
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
            raise OSError(
                f"cannot download {url} ({error}); download it elsewhere and put it at {path}, or "
                "give the path of a checkpoint"
            ) from error
    return _read(path, None, hash_prefix)

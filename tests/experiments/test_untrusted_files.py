"""Files by somebody who means harm: none runs code, leads out of its folder or fills memory.

Each test holds the attack itself and, where that is safe, shows that it works on a careless reader.
"""

import ast
import base64
import contextlib
import json
import os
import pickle
import re
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin

import bridge
from experiments.cli import commands
from experiments.runs.descriptions import read_description
from experiments.runs.job import Job
from experiments.runs.networks import build_flax, load_flax
from experiments.runs.own_network import load_own
from experiments.runs.records import read_record
from experiments.settings.flags import Experiment, Model
from experiments.studies import rescore
from experiments.studies.exported import read_network
from experiments.user.predictions import _table
from jaxcurv.data import cifar, load
from jaxcurv.data.datasets import open_folder
from jaxcurv.storage.checksums import read_json, write_json
from jaxcurv.training.checkpoints import keep_trained
from tests.conftest import ROOT
from tests.exported_run import write_exported_digits
from tests.jaxcurv.data.test_data import archive_bytes, batch, official, python2_pickle
from tests.jaxcurv.data.test_data import jpeg as small_jpeg
from tests.jaxcurv.data.test_data import write_tfds as write_tfds
from tests.jaxcurv.data.test_folder import save_image
from tests.one_process import stages_in_this_process
from tests.report_page import ATTACK, sections, write
from tests.shallow_resnet import replace_resnet18
from tools import check_report, results_page

official = official  # a fixture, as write_tfds

MEGABYTE = 2**20


class Touches:
    """Unpickling one runs a shell command that creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Is there if an attack worked."""
    return tmp_path / "attacked"


@contextlib.contextmanager
def little_memory(megabytes: int = 150) -> Iterator[None]:
    """Fails if the process's memory peaks by more than that over what it has now."""

    def kilobytes(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what there is now
    before = kilobytes("VmRSS")
    yield
    assert (kilobytes("VmHWM") - before) / 1024 < megabytes


def test_the_measure_of_memory_sees_what_is_freed_again() -> None:
    # Far above the limit, for the system may take other pages back meanwhile.
    with pytest.raises(AssertionError), little_memory(40):
        np.ones(500 * MEGABYTE, np.uint8)


# --- checkpoints


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_checkpoint(tmp_path: Path, marker: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "evil.pth"
    content = {"fc.weight": torch.ones(1), "args": Touches(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"evil\.pth .*(system.*refused|no readable).*torch\.save"):
        bridge.weights.load_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_code_in_a_checkpoint_on_the_command_line(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pth"
    torch.save(Touches(marker), path)
    given = ["--model.weights", str(path), "--data.mean", "0.5", "--data.std", "0.5"]
    with stages_in_this_process():
        assert commands.run(["train", "digits", "--out", str(tmp_path / "run"), *given]) == 1
    assert re.search(r"evil\.pth holds a Python object \(posix\.system\)", capsys.readouterr().err)
    assert not marker.exists()


class Talks(torch.nn.Module):
    """TorchScript's code runs when an archive is loaded: here it prints."""

    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        print("code of the archive")
        self.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore")  # of torch: TorchScript is deprecated
def test_code_in_a_torchscript_archive(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.jit.script(Talks()).save(str(path))
    with pytest.raises(ValueError, match=r"evil\.pt .*TorchScript archive.*torch\.save"):
        bridge.weights.load_checkpoint(path)
    assert "code of the archive" not in capfd.readouterr().out
    torch.jit.load(str(path))
    assert "code of the archive" in capfd.readouterr().out


def test_a_compressed_checkpoint_is_not_inflated(tmp_path: Path) -> None:
    path, zeros = tmp_path / "bomb.pth", 64 * MEGABYTE
    torch.save({"a": torch.zeros(zeros // 4)}, path)
    with zipfile.ZipFile(path) as saved:
        members = {one.filename: saved.read(one) for one in saved.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        for name, content in members.items():
            bomb.writestr(name, content)
    del members
    assert path.stat().st_size < 2 * MEGABYTE
    with little_memory(40), pytest.raises(ValueError, match=r"bomb\.pth is compressed.*67,\d{3}"):
        bridge.weights.load_checkpoint(path)


def test_claims_in_a_checkpoint_take_no_memory(tmp_path: Path) -> None:
    path, claim = tmp_path / "bomb.pth", struct.pack("<i", 2_000_000_000)
    torch.save({"a": torch.zeros(8)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"K\x08N", b"J" + claim + b"N"))
    assert path.read_bytes() != content
    with little_memory(), pytest.raises(ValueError, match=r"bomb\.pth is no readable"):
        bridge.weights.load_checkpoint(path)
    for expanded in (
        {"a": torch.zeros(1, dtype=torch.float64).expand(10**12)},
        {str(name): torch.zeros(1).expand(10**6) for name in range(1000)},
    ):
        torch.save(expanded, path)
        with little_memory(), pytest.raises(ValueError, match=r"bomb\.pth holds tensors of [\d,]+"):
            bridge.weights.load_checkpoint(path)
    for unfit in (torch.ones(2, device="meta"), torch.ones(2).to_sparse()):
        torch.save({"a": unfit}, path)
        with pytest.raises(ValueError, match=r"without values or sparse ones: a; write dense"):
            bridge.weights.load_checkpoint(path)


def safetensors(header: dict[str, Any], content: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensor(*shape: int, offsets: tuple[int, int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**62),
        safetensors({}, length=99_000_000),
        safetensors({"a": tensor(2, offsets=(0, 8)), "b": tensor(2, offsets=(4, 12))}, bytes(12)),
        safetensors({"a": tensor(2**32, 2**32, offsets=(0, 8))}, bytes(8)),
        safetensors({"a": tensor(2**30, offsets=(0, 2**32))}, bytes(8)),
    ],
    ids=["header", "long header", "overlap", "overflow", "beyond the end"],
)
@pytest.mark.parametrize("read", [bridge.weights.load_checkpoint, bridge.weights.load_weights])
def test_malformed_safetensors(tmp_path: Path, read: Callable, content: bytes) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(content)
    with little_memory(), pytest.raises(ValueError, match=r"evil\.safetensors is not .*replace it"):
        read(path)


@pytest.mark.parametrize("header", ["[" * 100_000, "[]", "9" * 10_000])
def test_headers_that_are_no_object(tmp_path: Path, header: str) -> None:
    path = tmp_path / "evil.safetensors"
    content = {"__metadata__": {"header": header}, "a": tensor(2, offsets=(0, 8))}
    path.write_bytes(safetensors(content, bytes(8)))
    assert "header" not in bridge.weights.load_checkpoint(path).origin
    with pytest.raises(ValueError, match=r"evil\.safetensors has no header"):
        bridge.weights.load_weights(path)


# --- what a run's folder says of its network

NETWORK = {
    "architecture": "resnet18",
    "stem": "cifar",
    "width": 2,
    "num_classes": 2,
    "in_channels": 1,
    "class_names": ["a", "b"],
    "normalisation": {"mean": [0.5], "std": [0.5]},
    "checkpoint": "checkpoints/0",
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "os.system"}, "architecture is 'os.system', not resnet18 or resnet50"),
        ({"stem": ["cifar"]}, r"stem is \['cifar'\]"),
        ({"width": -1}, "width is -1"),
        ({"width": "2"}, "width is '2'"),
        ({"num_classes": 10**9}, "2 class_names for 1000000000 classes"),
        ({"class_names": [1, 2]}, "no list of class_names"),
        ({"normalisation": {"mean": [0.5]}}, "normalisation cannot be read"),
        ({"normalisation": {"mean": [0.5], "std": [0.0]}}, "std .* must be positive"),
        ({"checkpoint": "../../etc"}, r"checkpoint at '\.\./\.\./etc', not within"),
        ({"checkpoint": "/etc"}, "checkpoint at '/etc'"),
        ({"checkpoint": "checkpoints/../../etc"}, "not within the run's folder: run train again"),
        ({"checkpoint": None}, "checkpoint at None"),
    ],
)
def test_descriptions_are_checked(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.json"
    write_json(path, NETWORK)  # whoever makes a file can give it a checksum
    assert read_description(tmp_path) == NETWORK
    write_json(path, NETWORK | changed)
    with pytest.raises(ValueError, match=rf"model\.json .*{message}"):
        read_description(tmp_path)


OWN_NETWORK = {
    "factory": "pets.models:make",
    "sources": {"pets.models": "0" * 64},
    **{name: NETWORK[name] for name in ("num_classes", "in_channels", "class_names")},
    "normalisation": NETWORK["normalisation"],
    "checkpoint": "network.safetensors",
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"factory": "os:system('ls')"}, "factory is .*not package.module:factory"),
        ({"factory": None}, "factory is None"),
        ({"sources": ["pets"]}, "no checksums of the factory's sources"),
        ({"sources": {"pets": 3}}, "no checksums of the factory's sources"),
        ({"framework": "onnx"}, "framework is 'onnx', not torch or jax"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"checkpoint": "../network.safetensors"}, "not within"),
    ],
)
def test_descriptions_of_own_networks_are_checked(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.json"
    write_json(path, OWN_NETWORK)
    assert read_description(tmp_path) == OWN_NETWORK
    write_json(path, OWN_NETWORK | changed)
    with pytest.raises(ValueError, match=rf"model\.json .*{message}"):
        read_description(tmp_path)


def test_a_file_names_no_code_to_run(tmp_path: Path) -> None:
    """The factory is that of the settings, which a user gave; a header's alone is not called."""
    job = Job(Experiment(model=Model(factory="pets:make")), tmp_path, None)
    description = OWN_NETWORK | {"factory": "os:abort"}
    with pytest.raises(ValueError, match=r"made by os:abort, the settings have pets:make"):
        load_own(job, description)
    with pytest.raises(ValueError, match=r"the settings have no factory"):
        load_own(Job(Experiment(), tmp_path, None), description)


def test_a_description_that_leads_out_writes_nothing_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    write_json(run / "model.json", NETWORK | {"checkpoint": "../outside"})
    assert commands.run(["rank-correlation", "digits", "--out", str(run)]) == 2, capsys.readouterr()
    assert "not within the run's folder" in capsys.readouterr().err
    assert not outside.exists()  # Orbax makes the folder that it is to read


def test_a_width_of_a_header_takes_no_memory(tmp_path: Path) -> None:
    path = write_exported_digits(tmp_path) / "weights.safetensors"
    state_dict, header = bridge.weights.load_weights(path)
    message = r"weights\.safetensors holds other tensors than .* run export again"
    for width in (3, 10**9):
        bridge.weights.save_weights(path, state_dict, header | {"width": width})
        with little_memory(), pytest.raises(ValueError, match=message):
            read_network(Experiment(), tmp_path, None)


def test_a_width_in_model_json_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_resnet18(monkeypatch)
    keep_trained(build_flax(NETWORK, 0, jnp.float32), tmp_path / "checkpoints/0")
    job = Job(Experiment(), tmp_path, None)
    message = (
        r"checkpoints/0 holds another network than model\.json .*is stored as.* run train again"
    )
    for width in (3, 10**9):
        with little_memory(), pytest.raises(ValueError, match=message):
            load_flax(job, NETWORK | {"width": width})


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' * 100_000, b"\xff\xfe", b"9" * 9999])
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stages").mkdir()
    for name, read in (
        ("settings.json", partial(read_json, tmp_path / "settings.json")),
        ("model.json", partial(read_description, tmp_path)),
        ("stages/train.json", partial(read_record, tmp_path, "train")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is damaged .*delete or replace it"):
            read()


# --- CIFAR's archives


def in_place_of_test(content: bytes) -> bytes:
    files = {f"data_batch_{i}": python2_pickle(batch(0, 1, labels=10)) for i in range(1, 6)}
    names = python2_pickle({"label_names": list("abcdefghij")})
    return archive_bytes(
        "cifar-10-batches-py", files | {"batches.meta": names, "test_batch": content}
    )


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        *((protocol, r"posix\.system") for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        (b"\x80\x02c__builtin__\ngetattr\n.", r"__builtin__\.getattr"),
        (b"\x80\x02c__builtin__\neval\nU\x011\x85R.", r"__builtin__\.eval"),
        (b"\x80\x02ccopy_reg\n_reconstructor\n.", r"copy_reg\._reconstructor"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", r"numpy\.load"),
        (pickle.dumps(np.array([[1, 2]], object), 2), r"numpy\._core\.multiarray\._reconstruct"),
    ],
)
def test_code_in_cifar_of_the_right_md5(
    tmp_path: Path,
    marker: Path,
    official: Callable[..., None],
    content: bytes | int,
    asked: str,
) -> None:
    if isinstance(content, int):
        content = pickle.dumps({"data": Touches(marker)}, content)
        pickle.loads(content)
        marker.unlink()
    archive = in_place_of_test(content)
    official("cifar10", archive)
    path = tmp_path / "data" / cifar.ARCHIVES["cifar10"].file_name
    path.parent.mkdir()
    path.write_bytes(archive)
    cure = rf"{path.name} is not CIFAR's, replace it by .*: .*asks for {asked}, which is refused"
    with pytest.raises(ValueError, match=cure):
        load("cifar10", path.parent)
    assert list(path.parent.iterdir()) == [path]
    assert not marker.exists()


def test_nothing_in_an_archive_of_another_md5_is_read(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_read_archive", lambda *_: marker.touch())
    path = tmp_path / cifar.ARCHIVES["cifar10"].file_name
    path.write_bytes(in_place_of_test(b""))
    with pytest.raises(ValueError, match=r"has the md5 \w+ instead of c58f"):
        load("cifar10", tmp_path)
    assert not marker.exists()


# --- images


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png(width: int, height: int, *more: bytes) -> bytes:
    """A black PNG of one bit a pixel."""
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = [packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(min(height, 12_000))]
    pixels = chunk(b"IDAT", b"".join(rows) + packer.flush())
    start, end = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size), chunk(b"IEND", b"")
    return start + b"".join(more) + pixels + end


def large_jpeg() -> bytes:
    """Declares 65,500 x 65,500 pixels."""
    content = bytearray(small_jpeg(0))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


BOMBS = {
    "warned.png": png(12_000, 12_000),  # less than twice Pillow's limit
    "large.png": png(60_000, 60_000),
    "large.jpg": large_jpeg(),
}


@pytest.fixture
def layouts(tmp_path: Path) -> Callable[[str, bytes], dict[str, Callable[[], Any]]]:
    """Puts a file among the images of each kind of folder, and says how to come upon it."""

    def make(name: str, content: bytes) -> dict[str, Callable[[], Any]]:
        places = {
            "own": "own/train/b",
            "tiny_imagenet": "tiny-imagenet-200/train/n02/images",
            "imagenet": "imagenet/val/n02",
        }
        for split in ("train", "test"):
            for label in "ab":
                save_image(tmp_path / f"own/{split}/{label}/0.png", 4, 4, 9)
        for wnid in ("n01", "n02"):
            save_image(tmp_path / f"tiny-imagenet-200/train/{wnid}/images/0.png", 4, 4, 9)
            save_image(tmp_path / f"imagenet/train/{wnid}/0.png", 4, 4, 9)
            save_image(tmp_path / f"imagenet/val/{wnid}/0.png", 4, 4, 9)
        save_image(tmp_path / "tiny-imagenet-200/val/images/val_0.png", 4, 4, 9)
        (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").write_text("val_0.png\tn01\n")
        for folder in places.values():
            (tmp_path / folder / name).write_bytes(content)
        return {
            "in place": lambda: open_folder(tmp_path / "own", "train")[2],
            "tree": lambda: load("own", tmp_path).train[2],
            "tiny_imagenet": lambda: load("tiny_imagenet", tmp_path).train[2],
            "imagenet": lambda: load("imagenet", tmp_path).test[2],
        }

    return make


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # no error elsewhere
@pytest.mark.parametrize("name", BOMBS)
def test_images_that_fill_memory(layouts: Any, name: str) -> None:
    assert len(BOMBS[name]) < MEGABYTE
    for read in layouts(name, BOMBS[name]).values():
        with (
            little_memory(),
            pytest.raises(ValueError, match=rf"{name} is not.*replace it.*pixels"),
        ):
            read()


def test_a_png_with_a_large_text(layouts: Any) -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * MEGABYTE), 1))
    for read in layouts("text.png", png(4, 4, text)).values():
        with little_memory(), pytest.raises(ValueError, match=r"text\.png is not .*replace it"):
            read()
    assert PngImagePlugin.MAX_TEXT_CHUNK <= MEGABYTE  # Pillow's own limit


def test_many_frames_are_refused_unread(tmp_path: Path) -> None:
    """A PNG with 100 frames, 1.2 GB together as RGB."""
    control = partial(struct.pack, ">IIIIIHHBB")
    size = 2000, 2000, 0, 0, 1, 10, 0, 0
    content = png(
        2000,
        2000,
        chunk(b"acTL", struct.pack(">II", 100, 0)) + chunk(b"fcTL", control(0, *size)),
    )
    pixels = content[content.index(b"IDAT") + 4 : -16]
    frames = b"".join(
        chunk(b"fcTL", control(2 * frame - 1, *size))
        + chunk(b"fdAT", struct.pack(">I", 2 * frame) + pixels)
        for frame in range(1, 100)
    )
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(content[:-12] + frames + content[-12:])
    with Image.open(tmp_path / "a/0.png") as image:
        assert image.n_frames == 100
    with little_memory(), pytest.raises(ValueError, match=r"0\.png has several frames"):
        open_folder(tmp_path)


def test_ghostscript_is_not_run(
    tmp_path: Path, layouts: Any, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it looks for it once
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    for read in layouts("evil.png", content).values():
        with pytest.raises(ValueError, match=r"evil\.png is not a readable image, replace it"):
            read()
    assert not marker.exists()
    with contextlib.suppress(OSError), Image.open(tmp_path / "own/train/b/evil.png") as image:
        image.load()
    assert marker.exists()


@pytest.mark.parametrize("suffix", ["svg", "eps", "fli", "icns", "pdf"])
def test_other_formats_are_not_tried(layouts: Any, suffix: str) -> None:
    content = {
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n",
        "fli": struct.pack("<IHHHHHH", 12, 0xAF11, 1, 4, 4, 8, 3) + bytes(110),
        "icns": b"icns" + struct.pack(">I", 16) + b"ic07" + struct.pack(">I", 8),
        "pdf": b"%PDF-1.4\n",
    }[suffix]
    read = layouts(f"{suffix}.png", content)["in place"]
    with pytest.raises(ValueError, match=rf"{suffix}\.png is not .*cannot identify"):
        read()


@pytest.mark.filterwarnings("ignore:.*links to folders are not read")
def test_links_and_pipes_among_images(tmp_path: Path, layouts: Any) -> None:
    readers = layouts("0.png", (png(4, 4)))
    own = tmp_path / "own/train/b"
    (own / "loop").symlink_to(tmp_path / "own")
    (own / "self").symlink_to("self")
    (tmp_path / "own/train/loop").symlink_to("loop")  # a class folder that is its own link
    assert len(open_folder(tmp_path / "own", "train")) == 2
    for name, target in (("passwd.png", "/etc/passwd"), ("zero.png", "/dev/zero")):
        (own / name).symlink_to(target)
        with pytest.raises(ValueError, match=rf"{name} is not a readable image, replace it"):
            open_folder(tmp_path / "own", "train")[2]
        (own / name).unlink()
    os.mkfifo(own / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is not .*no regular file"):
        open_folder(tmp_path / "own", "train")[2]
    annotations = tmp_path / "tiny-imagenet-200/val/val_annotations.txt"
    annotations.write_text("../../../own/train/b/0.png\tn01\n")
    with pytest.raises(FileNotFoundError, match=r"lacks \.\./\.\./\.\./own.*add them"):
        readers["tiny_imagenet"]()


# --- data sets of TFDS


def tfds_features() -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["x", "y"]),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_tfds_records_that_fill_memory(tmp_path: Path, write_tfds: Callable[..., None]) -> None:
    good = {"image": small_jpeg(1), "label": 0}
    bombs = [{"image": content, "label": 1} for content in BOMBS.values()]
    write_tfds(tfds_features(), {"train": [good, *bombs], "test": [good]})
    train = load("other", tmp_path).train
    harmless = 0
    with little_memory():
        for position in range(4):
            if train.records[position]["image"] == good["image"]:
                harmless += 1
                continue
            message = rf"array_record\S*: train, position {position}: .*replace it.*pixels"
            with pytest.raises(ValueError, match=message):
                train[position]
    assert harmless == 1


def test_tfds_lengths_take_no_memory(tmp_path: Path, write_tfds: Callable[..., None]) -> None:
    examples = [{"image": small_jpeg(1), "label": 0}]
    write_tfds(tfds_features(), {"train": examples, "test": examples})
    path = tmp_path / "other/1.0.0/dataset_info.json"
    found = json.loads(path.read_text())
    for split in found["splits"]:
        split["shardLengths"] = [str(10**12)]
    path.write_text(json.dumps(found))
    message = r"1\.0\.0 has not the 1,000,000,000,000 records of its split \w+ .*prepare the data"
    with little_memory(), pytest.raises(ValueError, match=message):
        load("other", tmp_path)


@pytest.mark.parametrize("form", ["proto", "legacy", "within"])
def test_tfds_imports_nothing(
    tmp_path: Path,
    marker: Path,
    write_tfds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    import tensorflow_datasets as tfds

    examples = [{"image": small_jpeg(1), "label": 0}]
    write_tfds(tfds_features(), {"train": examples, "test": examples})
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    monkeypatch.syspath_prepend(tmp_path)  # the working directory is on it, as a rule
    path = tmp_path / "other/1.0.0/features.json"
    found = json.loads(path.read_text())
    if form == "proto":
        found["featuresDict"]["features"]["label"]["pythonClassName"] = "evil_module.Feature"
    else:
        found = {"type": "evil_module.Feature", "content": {}}
    if form == "within":
        found = {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"image": found})},
        }
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"features\.json asks to import 'evil_module\.Feature'"):
        load("other", tmp_path)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        tfds.builder_from_directory(path.parent)
    assert marker.exists()
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"features\.json is damaged"):
        load("other", tmp_path)


# --- the report, the page of results and its checker

ATTACKS = [
    ATTACK,
    "\"><img src=x onerror=fetch('//evil.example')>",
    "' onmouseover='alert(1)",
    "</title></style></script><script>alert(1)</script>",
    "javascript:alert(1)",
    "\u2028\u2029</pre>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
]


@pytest.fixture(params=["javascript:alert(1)", " ".join(ATTACKS)], ids=["scheme", "all"])
def attacked(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The text of a report that has an attack wherever names come in."""
    attack = request.param
    given = sections()
    for name, columns in (
        ("per_class", ["class_name"]),
        ("vulnerable", ["path", "class_name", "digital_prediction", "analog_prediction"]),
        ("routing_baselines", ["name"]),
        ("routing_choices", ["router"]),
        ("routing_guarantees", ["router"]),
        ("overlap", ["reason"]),
    ):
        given[name] = given[name].assign(**dict.fromkeys(columns, attack))
    figures = [tmp_path / f"{one.replace('/', '_')}.png" for one in ATTACKS]
    for figure in figures:
        Image.new("L", (9, 9)).save(figure)
        figure.with_suffix(".svg").write_text("<svg/>")
    stage = {"name": attack, "seconds": 1.0, "device": attack, "versions": {attack: attack}}
    path = write(
        tmp_path / "report.html",
        **{**given, "comparison": attack, "routing_summary": attack, "reproduce": [attack]},
        drift=attack,
        remedies=[attack],
        commands=dict.fromkeys(("drift", "remedies", "compensate", "per_class.csv"), attack),
        title=attack,
        settings={"data": {"name": attack, "class_names": [attack], attack: attack}},
        stages=[stage],
        figures=figures,
    )
    return path.read_text()


def test_names_bring_nothing_into_a_report(attacked: str, tmp_path: Path) -> None:
    allowed = {"class", "src", "alt", "id", "href", "style", "scope", "lang", "charset", "name"}
    allowed |= {"content", "http-equiv", "tabindex", "role", "type", "rowspan", "colspan"}
    allowed |= {"download", "open"}
    inside = ("#", "data:image/png;base64,", "data:text/csv;base64,")
    seen: list[str] = []
    beside: list[str] = []

    class Parser(check_report.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            for name, value in attributes:
                assert name in allowed or name.startswith(("aria-", "data-")), (tag, name)
                if name in ("src", "href") and not (value or "").startswith(inside):
                    beside.append(value or "")

    Parser().feed(attacked)
    assert (seen.count("script"), seen.count("title"), seen.count("svg")) == (1, 1, 0)
    assert len(beside) == len(ATTACKS)
    for link in beside:  # to a file in the page's folder: no scheme, no host
        assert ":" not in link
        assert (tmp_path / unquote(link)).parent == tmp_path
        assert (tmp_path / unquote(link)).exists()
    assert "49" not in re.findall(r"<title>(.*?)</title>", attacked)[0]
    assert check_report.source_problems(attacked) == []


def test_a_report_runs_its_own_script_alone(page_in_browser: Callable[[str], Any]) -> None:
    """Even if an attack got past the escaping."""
    found = page_in_browser("")
    assert found["problems"] == []
    assert found["columns"] > 0
    evil = "<script>document.title = 'attacked'</script><img src=data:, onerror=alert(1)>"
    problems = " ".join(page_in_browser(evil)["problems"])
    assert problems.count("blocked: inline") >= 1


@pytest.fixture
def page_in_browser(tmp_path: Path) -> Callable[[str], Any]:
    try:
        browser = check_report.find_browser()
    except check_report.NoBrowserError as error:
        pytest.skip(str(error))
    figures = [tmp_path / f"{name}.png" for name in ("figure_one", "predictors", "calibration")]
    figures += [tmp_path / f"{name}.png" for name in ("routing", "gallery")]
    for figure in figures:
        Image.new("L", (9, 9)).save(figure)

    def check(brought_in: str) -> Any:
        path = write(tmp_path / "report.html", **sections(), figures=figures)
        text = path.read_text()
        assert "</h1>" in text
        path.write_text(text.replace("</h1>", f"</h1>{brought_in}"))
        return check_report.check(path, browser)

    return check


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_checker_of_reports_is_not_filled_by_images() -> None:
    for content in BOMBS.values():
        encoded = base64.b64encode(content).decode()
        with little_memory():
            found = check_report.source_problems(
                f'<img alt="x" src="data:image/png;base64,{encoded}">'
            )
        assert re.match(r"image damaged: x \(", found[0])


@pytest.mark.parametrize("attack", [*ATTACKS, "a | b", "`code`", "a\n\n# b", "[x](javascript:y)"])
def test_names_bring_nothing_into_the_page_of_results(attack: str) -> None:
    lines = results_page.markdown(
        ["name", "command"], [[attack, results_page.Code(attack)]]
    ).splitlines()
    assert len(lines) == 3
    cells = re.split(r"(?<!\\)\|", lines[2])[1:-1]
    assert len(cells) == 2
    assert not re.search(r"<|(?<!\\)`|\]\(|!\[", cells[0])
    assert cells[1].strip().count("`") == 2


def test_names_of_files_stay_in_their_folder() -> None:
    for name in ("../../etc/passwd", "a/b", "..", "/etc"):
        assert re.fullmatch(r"[\w.-]*", rescore._slug(name))
        assert "/" not in rescore._slug(name)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/../../b", ""])
def test_names_of_data_sets_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    for label in "ab":
        for split in ("train", "test"):
            save_image(tmp_path / f"outside/{split}/{label}/0.png", 4, 4, 9)
    (tmp_path / "inside").mkdir()
    with pytest.raises(ValueError, match=r"name of a data set.*--data-dir"):
        load(name, tmp_path / "inside")
    assert not list(tmp_path.rglob("dataset_info.json"))


# --- Parquet


def test_code_in_a_parquet_file(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "evil.parquet"
    evil = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Touches(marker)),
    }
    fields = [pa.field("index", pa.int64()), pa.field("label", pa.int64(), metadata=evil)]
    about = {b"pandas": json.dumps({"columns": [], "index_columns": []}).encode()}
    table = pa.table([[1], [2]], schema=pa.schema(fields, metadata=about))
    pq.write_table(table, path)
    assert _table(path, ())["label"].tolist() == [2]
    assert pq.read_table(path, memory_map=True).num_rows == 1
    assert not marker.exists()
    pickle.loads(evil[b"ARROW:extension:metadata"])
    assert marker.exists()


# --- the source itself

_CODE = {"eval", "exec", "compile", "__import__"}
_MODULES = {"marshal", "shelve", "joblib", "dill", "cloudpickle", "yaml", "runpy", "pickle"}
_ALLOWED = {
    ("jaxcurv/data/cifar.py", "pickle"),  # which imports nothing that a file names
    ("experiments/system/factories.py", "import_module"),  # --model, the user's own code
    ("tools/site_pages.py", "import_module"),  # the project's packages, by names that stand there
    ("bridge/weights/checkpoints.py", "import_module"),  # torchvision, by a name that stands there
}


def careless(path: str, tree: ast.AST) -> Iterator[str]:
    """What in a module may run code that a file brings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names]
            yield from (one for one in named if one.split(".")[0] in _MODULES)
        if not isinstance(node, ast.Call):
            continue
        given = {one.arg: ast.unparse(one.value) for one in node.keywords}
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name in _CODE or name in ("os.system", "os.popen") or last in ("import_module",):
            yield last
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name in ("torch.jit.load", "torch.package.PackageImporter"):
            yield name
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            yield f"{name} with allow_pickle or shell"
        if name == "Image.open" and "formats" not in given:
            yield "Image.open of any format"
        if last in ("extractall", "extract", "unpack_archive"):
            yield name


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "tar.extractall(x)",
        "Image.open(x)",
        "importlib.import_module(x)",
    ],
)
def test_careless_calls_are_found(text: str) -> None:
    assert list(careless("x.py", ast.parse(text)))


def test_nothing_in_the_source_runs_what_a_file_brings() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for package in ("jaxcurv", "bridge", "experiments", "tools", "examples")
        for path in (ROOT / package).rglob("*.py")
        for what in careless(path.as_posix(), ast.parse(path.read_text()))
    }
    assert found - _ALLOWED == set()

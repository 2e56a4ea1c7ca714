"""The content of a file that `torch.save` wrote, without running anything of it."""

import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


class NumPyValue:
    """Stands for a NumPy scalar or array, or a part of one, and ignores what the file says of it.

    NumPy's own functions never see the bytes of the file: an array of objects is a pickle in it.
    """

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class NumPyArray(NumPyValue):
    """Stands for an array."""


_NUMPY: list[Any] = [  # numpy.core is version 1's
    (NumPyValue, "numpy.dtype"),
    (NumPyValue, "numpy.core.multiarray.scalar"),
    (NumPyValue, "numpy._core.multiarray.scalar"),
    (NumPyArray, "numpy.ndarray"),
    (NumPyArray, "numpy.core.multiarray._reconstruct"),
    (NumPyArray, "numpy._core.multiarray._reconstruct"),
    (NumPyArray, "numpy.core.numeric._frombuffer"),
    (NumPyArray, "numpy._core.numeric._frombuffer"),
]


def unpickle(path: Path) -> Any:
    """Tensors, plain containers, numbers and words of a file; a `NumPyValue` for one of NumPy's.

    Raises:
      ValueError: a damaged file, one of another format, or one that would run code.
    """
    _refuse_other_archives(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("ignore")  # of archives that it refuses in the next line
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from KeyError to OSError, for a damaged file
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise ValueError(
                f"{path} holds a Python object ({forbidden[1]}), and reading it would run code "
                "from the file: refused. If you trust its author, read it elsewhere and write the "
                "bare weights with torch.save(model.state_dict(), ...)"
            ) from error
        raise ValueError(
            f"{path} is no readable PyTorch checkpoint ({type(error).__name__}): damaged or of "
            "another format; write one with torch.save(model.state_dict(), ...)"
        ) from error


def is_safetensors(path: Path) -> bool:
    """Whether a file is named or begins like one of safetensors."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(10)
    return start[8:] in (b'{"', b"{}") and int.from_bytes(start[:8], "little") < path.stat().st_size


def _refuse_other_archives(path: Path) -> None:
    """Refuses archives that `torch.save` did not write.

    It stores its tensors as they are: more than the file has is there to fill memory. What cannot
    be read as an archive is left to PyTorch.
    """
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise ValueError(
                f"{path} is a TorchScript archive (torch.jit.save), a program with weights in it, "
                "and reading it runs that program: refused. If you trust its author, write its "
                "weights with torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            )
        if any(
            name.endswith(("archive_format", "serialized_exported_program.json")) for name in names
        ):
            raise ValueError(
                f"{path} is a program that torch.export wrote: refused. If you trust its author, "
                "write its weights with torch.save(dict(torch.export.load(FILE).state_dict), "
                "'weights.pth')"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise ValueError(
                f"{path} is a NumPy archive: write its arrays with torch.save({{name: "
                "torch.from_numpy(array) for name, array in numpy.load(FILE).items()}, "
                "'weights.pth')"
            )
        inflated = sum(member.file_size for member in members)
        if inflated > (size := path.stat().st_size):
            raise ValueError(
                f"{path} is compressed, its {size:,} bytes inflate to {inflated:,}: refused. If "
                "you trust its author, unpack it and pack it again uncompressed (zip -0)"
            )

"""The tutorials: notebooks in docs/tutorials, run in a kernel and kept with what they show.

`python -m tools tutorials` runs them again and keeps the new outputs; `make docs` shows what is
kept. A notebook runs in an empty folder, without progress bars, which would be kept as lines.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from tools.site_pages import DOCS, ROOT

TUTORIALS = DOCS / "tutorials"

SECONDS = 1800
"""Longest time of a cell: many times that of a whole notebook on two idle cores."""

_IN_CELLS = {
    "TQDM_DISABLE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONPATH": str(ROOT),  # this checkout, wherever jaxcurv was installed from
    # The shell's `python` is this one.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(notebook: Path, folder: Path) -> Any:
    """Runs a notebook's cells in order, in a folder, and returns it with its outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raises; shows the cell and its error.
      nbclient.exceptions.CellTimeoutError: a cell takes longer than `SECONDS`.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    found = nbformat.read(notebook, as_version=4)
    found.metadata = nbformat.from_dict(_METADATA)
    with TemporaryDirectory() as sockets, patch.dict(os.environ, _IN_CELLS):
        # Files in a folder of this user, where TCP would be open to others on the machine.
        connection = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        NotebookClient(
            found,
            timeout=SECONDS,
            startup_timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            config=Config({"KernelManager": connection}),
        ).execute()
    for cell in found.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _as_seen(output.text)
    return found


def _as_seen(text: str) -> str:
    """What a terminal shows of a command's words, without colours."""
    lines = _COLOURS.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r")[2].rstrip() for line in lines)


def rerun(names: Sequence[str]) -> None:
    """Runs tutorials by their names, all where there are none, and keeps the new outputs.

    Raises:
      ValueError: no tutorial has such a name.
    """
    import nbformat

    known = {path.stem: path for path in sorted(TUTORIALS.glob("*.ipynb"))}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no tutorial {unknown[0]!r}; choose from {', '.join(known)}")
    for name in names or known:
        with TemporaryDirectory() as folder:
            nbformat.write(executed(known[name], Path(folder)), known[name])
        print(known[name])

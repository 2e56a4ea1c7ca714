"""The README's Python, as a user would paste it: one block after the other."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def run_blocks(page: Path, folder: Path) -> str:
    """Runs the page's four blocks in one process, in the folder; returns its standard error."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 4
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} >= {"scores.parquet", "chip.safetensors"}
    return result.stderr


def test_the_readme_s_blocks_run_in_order(tmp_path: Path) -> None:
    assert "DeprecationWarning" not in run_blocks(README, tmp_path)

"""The lock of a folder: who holds it, and when it is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxcurv.storage import lock
from jaxcurv.storage.lock import FolderInUse, hold

HOLDER = """
import sys, time
from pathlib import Path
from jaxcurv.storage.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def rewrite(path: Path, **changes: object) -> None:
    before = path.stat()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_lock_is_held_and_released(tmp_path: Path) -> None:
    with hold(tmp_path / "new"):
        said = json.loads((tmp_path / "new" / ".lock").read_text())
        assert said["process"] == os.getpid()
    assert not any((tmp_path / "new").iterdir())


def test_a_second_holder_is_refused_and_told_of_the_first(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    rewrite(tmp_path / ".lock", job="4711")
    with (
        pytest.raises(
            FolderInUse,
            match=rf"(?s)in use by process {holder.pid} on .*, job 4711, .*sign of life \d",
        ),
        hold(tmp_path),
    ):
        pass
    assert (tmp_path / ".lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert not any(tmp_path.iterdir())


def test_a_process_of_the_same_number_is_not_the_holder(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    rewrite(tmp_path / ".lock", started="1")  # as if the number had been given out again
    with hold(tmp_path):
        pass


def test_a_holder_whose_start_is_hidden_lives_while_its_heart_beats(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without /proc, or where it hides the processes of other users."""
    started = lock._started
    monkeypatch.setattr(lock, "_started", lambda process: started(process) and lock._UNKNOWN)
    with pytest.raises(FolderInUse, match=f"process {holder.pid} on"), hold(tmp_path):
        pass
    long_ago = time.time() - lock.DEAD_AFTER_SECONDS - 5
    os.utime(tmp_path / ".lock", (long_ago, long_ago))
    with hold(tmp_path):
        pass


def test_a_lock_of_another_host_is_taken_over_without_a_heartbeat(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    path = tmp_path / ".lock"
    rewrite(path, host="elsewhere", processes="another boot", process=1)
    with pytest.raises(FolderInUse, match="process 1 on elsewhere"), hold(tmp_path):
        pass
    long_ago = time.time() - lock.DEAD_AFTER_SECONDS - 5
    os.utime(path, (long_ago, long_ago))
    with hold(tmp_path):
        pass


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with hold(tmp_path):
        path = tmp_path / ".lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_holder_whose_lock_was_taken_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with hold(tmp_path):
            (tmp_path / ".lock").write_text(json.dumps({"token": "x", "process": 7, "host": "h"}))
            assert stopped.wait(20)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "was taken over by process 7 on h" in capsys.readouterr().err
    assert (tmp_path / ".lock").exists()  # it is another's now


def test_of_many_who_find_a_dead_lock_one_gets_it(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()
    holder.wait()
    at_once, inside, most = threading.Barrier(8), [], []
    guard = threading.Lock()

    def work() -> None:
        at_once.wait()
        try:
            with hold(tmp_path):
                with guard:
                    inside.append(1)
                    most.append(len(inside))
                time.sleep(0.05)
                with guard:
                    inside.pop()
        except FolderInUse:
            pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most
    assert max(most) == 1
    assert not any(tmp_path.iterdir())

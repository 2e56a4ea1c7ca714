"""The lock of a folder: who has it, and when it is taken over."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from jaxcurv.storage import lock as module
from jaxcurv.storage.lock import FolderInUse, lock

HOLDER = """
import sys, time
from pathlib import Path
from jaxcurv.storage.lock import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where names of files cannot be exchanged and the lease takes nothing over."""
    monkeypatch.setattr("filelock._util._rename_call", lambda: (lambda *_: errno.EINVAL, 2))


def rewrite(path: Path, **changes: object) -> None:
    """Changes what a lock and its note say of the holder, as if its last sign of life was then."""
    before = path.stat()
    marker, note = path.read_text(), path.with_name(".lock.holder")
    for key in changes.keys() & {"pid", "host", "start"}:
        marker = re.sub(rf"(?m)^{key}=.*$", f"{key}={changes[key]}", marker)
    path.write_text(marker)
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def last_seen(path: Path, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def test_a_lock_is_taken_and_released(tmp_path: Path) -> None:
    with lock(tmp_path / "new"):
        assert filelock.SoftFileLease(tmp_path / "new" / ".lock").pid == os.getpid()
    assert not any((tmp_path / "new").iterdir())


def test_a_second_process_is_refused_and_told_of_the_first(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    rewrite(tmp_path / ".lock", job="4711")
    with (
        pytest.raises(
            FolderInUse,
            match=rf"(?s)in use by process {holder.pid} on .*, job 4711, .*sign of life \d",
        ),
        lock(tmp_path),
    ):
        pass
    assert (tmp_path / ".lock").exists()


def test_the_note_of_another_holder_is_not_believed(
    holder: subprocess.Popen[str], tmp_path: Path, no_exchange: None
) -> None:
    """Left by one that died; the next has the lock and is about to write its own."""
    rewrite(tmp_path / ".lock", token="another's", process=2**22 + 1)
    with pytest.raises(FolderInUse, match=rf"in use by process {holder.pid} on"), lock(tmp_path):
        pass


@pytest.mark.parametrize("file_system", ["local", "shared"])
def test_the_lock_of_a_killed_process_is_taken_over(
    holder: subprocess.Popen[str],
    tmp_path: Path,
    file_system: str,
    request: pytest.FixtureRequest,
) -> None:
    if file_system == "shared":
        request.getfixturevalue("no_exchange")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock(tmp_path):
        assert filelock.SoftFileLease(tmp_path / ".lock").pid == os.getpid()
    assert not any(tmp_path.iterdir())


def test_a_process_of_the_same_number_is_not_the_holder(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    rewrite(tmp_path / ".lock", start=1)  # as if the number had been given out again
    with lock(tmp_path):
        pass


def test_a_process_of_this_host_that_is_suspended_keeps_its_lock(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    last_seen(tmp_path / ".lock", module.DEAD_AFTER_SECONDS + 5)
    with pytest.raises(FolderInUse, match=f"process {holder.pid} on"), lock(tmp_path):
        pass


def test_a_holder_that_cannot_be_looked_for_lives_while_its_heart_beats(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without /proc."""
    monkeypatch.setattr(module, "_processes", lambda: None)
    with pytest.raises(FolderInUse, match=f"process {holder.pid} on"), lock(tmp_path):
        pass
    last_seen(tmp_path / ".lock", module.DEAD_AFTER_SECONDS + 5)
    with lock(tmp_path):
        pass


def test_a_lock_of_another_host_is_taken_over_without_a_heartbeat(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    path = tmp_path / ".lock"
    rewrite(path, host="elsewhere", processes="another boot", pid=1, process=1)
    with pytest.raises(FolderInUse, match="process 1 on elsewhere"), lock(tmp_path):
        pass
    last_seen(path, module.DEAD_AFTER_SECONDS - 20)
    with pytest.raises(FolderInUse, match=r"last sign of life 10\d s ago"), lock(tmp_path):
        pass
    last_seen(path, module.DEAD_AFTER_SECONDS + 5)
    with lock(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_lock_of_an_earlier_version_is_respected(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"token": "x", "process": os.getpid(), "host": "here"}))
    with pytest.raises(FolderInUse, match="in use by an unknown process"), lock(tmp_path):
        pass
    last_seen(path, module.DEAD_AFTER_SECONDS + 5)
    with lock(tmp_path):
        pass


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    with lock(tmp_path):
        path = tmp_path / ".lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (
            "filelock/2\npid=7\nhost=h\nmode=lease\ntoken=x\nduration=120.0\n",
            "taken over by process 7 on h",
        ),
        (None, "removed"),
    ],
)
def test_a_holder_whose_lock_was_taken_stops(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    then: str | None,
    said: str,
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    path = tmp_path / ".lock"
    try:
        with lock(tmp_path):
            if then is None:
                path.unlink()
            else:
                (tmp_path / "other").write_text(then)
                (tmp_path / "other").replace(path)
            assert stopped.wait(20)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"was {said} while this process lived; stopping" in capsys.readouterr().err
    assert path.exists() == (then is not None)  # it is another's now


@pytest.mark.parametrize("file_system", ["local", "shared"])
def test_of_many_who_find_a_dead_lock_one_gets_it(
    holder: subprocess.Popen[str],
    tmp_path: Path,
    file_system: str,
    request: pytest.FixtureRequest,
) -> None:
    if file_system == "shared":
        request.getfixturevalue("no_exchange")
    holder.kill()
    holder.wait()
    at_once, inside, most = threading.Barrier(8), [], []
    guard = threading.Lock()

    def work() -> None:
        at_once.wait()
        try:
            with lock(tmp_path):
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

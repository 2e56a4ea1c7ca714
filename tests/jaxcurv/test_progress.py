"""Progress: one line for the outermost work, drawn over on a terminal, now and then in a file."""

import contextlib
import io
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxcurv import data
from jaxcurv.progress import announce, expect, progress, stage
from tests.terminal import Terminal, lines_of


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def __iadd__(self, seconds: float) -> "Clock":
        self.now += seconds
        return self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr("jaxcurv.progress.monotonic", clock)
    return clock


class Written:
    """All that went to standard error."""

    def __init__(self, captured: pytest.CaptureFixture[str]):
        self._captured = captured
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._captured.readouterr().err
        return self._text

    @property
    def lines(self) -> list[str]:
        return lines_of(self.getvalue())


@pytest.fixture
def file(capsys: pytest.CaptureFixture[str]) -> Written:
    """Standard error, which goes into a file."""
    return Written(capsys)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Written:
    """Standard error, which is a terminal."""
    # Not of the object: it is another one when the test is called.
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)
    return Written(capsys)


def test_work_alone_ends_in_one_line(clock: Clock, terminal: Written) -> None:
    with progress(1200, "score") as shown:
        for _ in range(12):
            clock += 1
            shown.update(100)
    assert "50%" in terminal.getvalue()
    assert terminal.lines == ["score: 1,200 images, 12.0 s, 100 images/s"]


def test_a_terminal_that_does_not_tell_its_rows_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Sized(Terminal):
        def fileno(self) -> int:
            return 2

    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((90, 0)))
    with (
        contextlib.redirect_stderr(Sized()) as terminal,
        stage("score"),
        progress(10, "test") as shown,
    ):
        shown.update(5)
        shown.update(5)
    assert "score:  50%|" in terminal.getvalue()


def test_work_within_advances_the_work_around_it(clock: Clock, terminal: Written) -> None:
    with progress(200, "drift"):
        for chip in range(2):
            clock += 5
            with progress(100, f"chip {chip}") as shown:
                shown.update(60)
                clock += 5
                shown.update(40)
    drawn = terminal.getvalue()
    assert "80%" in drawn
    assert "chip 1]" in drawn  # behind the numbers
    assert terminal.lines == ["drift: 200 images, 20.0 s, 10 images/s"]


def test_other_units_and_side_work_stay_silent(terminal: Written) -> None:
    with progress(10, "fit", "setting") as outer:
        with progress(500, "predict") as silent, progress(3, "program", "setting") as inner:
            silent.update(500)
            inner.update(3)
        with progress(7, "reading", "setting", side=True) as side:
            side.update(7)
        assert outer.count == 0
        outer.update(10)
    assert not re.search("predict|program|reading", terminal.getvalue())
    assert terminal.lines[0].startswith("fit: 10 settings, ")


def test_side_work_shows_itself_where_nothing_else_is(clock: Clock, terminal: Written) -> None:
    with stage("train"):
        with progress(100, "downloading", "B", side=True) as shown:
            shown.update(10)
            clock += 1
            shown.update(10)
            assert terminal.getvalue() == ""  # it may be short
            clock += 2
            shown.update(30)
            assert "downloading:  50%|" in terminal.getvalue()
        with progress(8, "fit") as shown:
            shown.update(8)
    assert terminal.lines == ["train: 8 images, 3.0 s, 2.7 images/s"]


@pytest.mark.parametrize("shown_how", ["update", "found", "initial", "nothing"])
def test_what_was_found_is_counted_but_is_no_speed(
    clock: Clock, terminal: Written, shown_how: str
) -> None:
    initial = 900 if shown_how == "initial" else 0
    with stage("score"):
        expect(1000)
        with progress(900, "part", initial=initial) as part:
            if shown_how in ("update", "found"):
                part.update(900, found=shown_how == "found")
        with progress(100, "part") as part:
            for _ in range(10):
                clock += 1
                part.update(10)
    if shown_how == "update":
        line = "score: 1,000 images, 10.0 s, 100 images/s"
    else:
        line = "score: 1,000 images (900 from before), 10.0 s, 10 images/s"
        # The first step, in which programs compile, is no part of the speed.
        assert re.search(r"96%.*\[00:05<00:04, 10\.\d+ image/s", terminal.getvalue())
    assert terminal.lines == [line]


def test_the_total_grows_by_what_is_expected_later(clock: Clock, terminal: Written) -> None:
    with stage("score"):
        expect(100)
        with progress(100, "test") as shown:
            clock += 1
            shown.update(100)
        expect(300)
        with progress(300, "without labels") as shown:
            clock += 1
            shown.update(100)
            assert "200/400" in terminal.getvalue()
            shown.update(200)
    assert terminal.lines == ["score: 400 images, 2.0 s, 200 images/s"]


def test_a_total_too_small_grows(clock: Clock, terminal: Written) -> None:
    with stage("train"), progress(10, "first") as first:
        first.update(10)
        with progress(30, "second") as second:
            clock += 1
            second.update(10)
            assert "20/40" in terminal.getvalue()
            second.update(20)


def test_units_one_after_the_other_share_the_line(clock: Clock, terminal: Written) -> None:
    with stage("moments"):
        expect(4, "chip")
        with progress(4, "pcm", "chip") as shown:
            shown.update(4)
        expect(60)
        with progress(60, "noise") as shown:
            clock += 75
            shown.update(60)
    assert terminal.lines == ["moments: 4 chips and 60 images, 1 min 15 s"]


@pytest.mark.parametrize("within", [True, False], ids=["in a stage", "alone"])
def test_another_unit_is_not_expected_while_work_is_open(terminal: Written, within: bool) -> None:
    with stage("moments") if within else contextlib.nullcontext():
        with progress(4, "pcm", "chip") as shown:
            with pytest.raises(ValueError, match="cannot expect images while chips are counted"):
                expect(60)
            expect(2, "chip")
            shown.update(4)
            assert "4/6" in terminal.getvalue() or not within
        expect(60)  # nothing is open any more
    assert "image" not in terminal.lines[0]


def test_work_that_an_exception_ends_early_was_not_found_finished(terminal: Written) -> None:
    with stage("score"):
        expect(140)
        with contextlib.suppress(ValueError), progress(100, "test") as shown:
            shown.update(40)
            raise ValueError("broken")
        with progress(100, "test") as shown:
            shown.update(100)
    (line,) = terminal.lines
    assert line.startswith("score: 140 images, ")
    assert "before" not in line


def test_any_thread_counts_in_a_stage(terminal: Written) -> None:
    def work(number: int) -> None:
        with progress(250, f"part {number}") as shown:
            for _ in range(250):
                shown.update()

    with stage("simulate"):
        expect(2000)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(8)))
    (line,) = terminal.lines
    assert line.startswith("simulate: 2,000 images, ")
    assert "before" not in line


def test_threads_beside_a_stage_have_bars_of_their_own(terminal: Written) -> None:
    def work() -> None:
        with progress(5, "theirs") as shown:
            shown.update(5)

    with progress(10, "ours") as shown:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        assert shown.count == 0
        shown.update(10)
    assert re.search("theirs: 5 images, .*ours: 10 images, ", terminal.getvalue(), re.DOTALL)


def test_a_line_now_and_then_into_a_file(clock: Clock, file: Written) -> None:
    with stage("simulate"):
        expect(400)
        shown_before = False
        for _ in range(80):
            with progress(5, "chip") as shown:
                clock += 1 if shown_before else 40  # programs compile
                shown.update(5)
                shown_before = True
    assert file.getvalue().splitlines() == [
        "simulate: 39 %, 155/400 images,  5.00 image/s, 00:49 left, chip",
        "simulate: 76 %, 305/400 images,  5.00 image/s, 00:19 left, chip",
        "simulate: 400 images, 1 min 59 s, 3.4 images/s",
    ]


def test_work_of_unknown_length_into_a_file(clock: Clock, file: Written) -> None:
    with progress(None, "fit", "setting") as shown:
        for _ in range(5):
            clock += 12
            shown.note("misfit 0.5")
            shown.update()
    assert file.getvalue().splitlines() == [
        "fit: 4 settings, 12.00s/ setting, misfit 0.5",
        "fit: 5 settings, 1 min 0 s, 0.083 settings/s",
    ]


def test_short_work_leaves_no_line_in_a_file_but_a_stage_does(clock: Clock, file: Written) -> None:
    for side in (False, True):
        with progress(10, "predict", side=side) as shown:
            clock += 2
            shown.update(10)
    assert file.getvalue() == ""
    with stage("analyse"):
        clock += 0.5
    assert file.getvalue() == "analyse: 0.5 s\n"


def test_the_beginning_is_said_on_a_terminal_alone(terminal: Written) -> None:
    announce("score")
    assert terminal.lines == ["score ..."]
    with stage("score"):
        pass
    assert len(terminal.lines) == 1
    with contextlib.redirect_stderr(io.StringIO()) as file:
        announce("score")
    assert file.getvalue() == ""


@pytest.mark.parametrize("where", [Terminal, io.StringIO])
def test_work_that_fails_says_how_far_it_came(clock: Clock, where: type[io.StringIO]) -> None:
    def work() -> None:
        with stage("score"), progress(100, "test") as shown:
            shown.update(40)
            raise ValueError("broken")

    with contextlib.redirect_stderr(where()) as file:
        with pytest.raises(ValueError, match="broken"):
            work()
        print("error: broken", file=sys.stderr)
        with stage("score"):  # nothing is left of the other
            pass
    written = file.getvalue()
    assert ("\r" in written) == file.isatty()
    lines = lines_of(written)
    assert len(lines) == 3
    assert "40/100" in lines[0]
    assert lines[1:] == ["error: broken", "score: 0.0 s"]


def test_messages_are_not_torn(terminal: Written) -> None:
    with stage("score"):
        expect(100)
        with progress(100, "test") as shown:
            shown.update(50)
            print("warning: the device is idle", file=sys.stderr)
            print("half a ", end="", file=sys.stderr)
            print("line", file=sys.stderr)
            shown.write("out of memory")
            shown.update(50)
    *messages, last = terminal.lines
    assert messages == ["warning: the device is idle", "half a line", "out of memory"]
    assert last.startswith("score: 100 images, ")


def test_tqdms_own_switch_turns_bars_off() -> None:
    work = """
from jaxcurv.progress import progress, stage
with stage("score"), progress(10, "test", initial=2) as shown:
    shown.note("fast")
    shown.update(8)
"""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    line = [sys.executable, "-c", work]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_reading_is_beside_the_work(clock: Clock, terminal: Written) -> None:
    images = data.Arrays(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32), np.arange(4))
    read = data.read(images)
    assert len(read) == 4
    assert terminal.getvalue() == ""


def test_it_does_not_import_what_warns_in_a_notebook_without_widgets() -> None:
    code = "import sys, jaxcurv.progress; print('tqdm' in sys.modules, 'tqdm.auto' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]

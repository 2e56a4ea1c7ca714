"""How far work has come: one line for the outermost work; what goes on within it advances it.

On a terminal the line is a bar, which a summary replaces in the end; into a file or a pipe goes a
line every 30 s, and the summary.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from threading import RLock
from time import monotonic
from typing import Any

from tqdm import tqdm

_LINE_SECONDS = 30.0

_SHORT_SECONDS = 3.0
"""What takes less leaves no line in a file, unless it is a stage."""

_SIDE_SECONDS = 2.0
"""What is done beside the work is shown on a terminal if it takes longer."""


class Progress:
    """Work that is counted; made by `progress`."""

    def __init__(self, display: "_Display | None" = None, within: "Progress | None" = None):
        self.count = 0
        """So far, with what was found finished."""
        self.display = display
        self._within = within

    def update(self, count: int = 1, *, found: bool = False) -> None:
        """Counts some more; `found` is what an earlier run has left, which took no time now."""
        self.count += count
        if self._within is not None:
            self._within.update(count, found=found)
        elif self.display is not None:
            self.display.update(count, found)

    def note(self, text: str) -> None:
        """Shows a few words behind the numbers."""
        if self.display is not None:
            self.display.note(text)

    def write(self, text: str) -> None:
        """A line on standard error, above the bar."""
        tqdm.write(text, file=sys.stderr)


@contextmanager
def progress(
    total: int | None,
    description: str,
    unit: str = "image",
    *,
    initial: int = 0,
    side: bool = False,
) -> Iterator[Progress]:
    """Shows work while it is done; within other work of the same unit it advances that instead.

    Work in another unit than that around it shows nothing. What has not been counted at the end was
    found finished, also where a `return` or a `break` leaves early; not where an exception does. A
    thread of its own sees the work of `stage` around it, and no other.

    Args:
      total: how much there is to count; None where that is not known.
      description: a few words ahead of the numbers; behind them, within other work.
      unit: what is counted, in the singular; "B" for bytes.
      initial: how much of it is finished.
      side: not the work that is waited for, such as reading: it is shown only while no other is,
        and leaves no line.
    """
    outer = _outer.get() or _stage
    above = None if outer is None else outer.display
    with ExitStack() as stack:
        if outer is None or (side and above is not None and above.meter is None):
            stream = sys.stderr if above is None else above.stream
            display = stack.enter_context(_Display(description, stream, side=side))
            display.expect(total, unit)
            work = Progress(display)
        elif not side and above is not None and above.make_room(total, unit):
            work = Progress(above, within=outer)
            work.note(description)
        else:
            work = Progress()
        if work.display is not None:
            stack.enter_context(work.display.counting())
        stack.callback(_outer.set, _outer.get())
        _outer.set(work)
        work.update(initial, found=True)
        yield work
        work.update(max(0, (total or 0) - work.count), found=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Shows the work of a whole process, from any thread, until its last line.

    It counts what `expect` announces, or else the first work within. Messages of others do not tear
    its line on a terminal.
    """
    global _stage
    with ExitStack() as stack:
        display = _Display(name, sys.stderr, stage=True)
        if display.live:
            # Here, because its package warns in a notebook without widgets.
            from tqdm.contrib import DummyTqdmFile

            stack.enter_context(redirect_stdout(DummyTqdmFile(sys.stdout)))
            stack.enter_context(redirect_stderr(DummyTqdmFile(sys.stderr)))
        stack.enter_context(display)
        stack.callback(_leave_stage)
        _stage = Progress(display)
        yield


def expect(total: int, unit: str = "image") -> None:
    """Says how much more the work around will count; another unit than before takes its place.

    Raises:
      ValueError: it is another unit than that of work which is still counted.
    """
    outer = _outer.get() or _stage
    if outer is not None and outer.display is not None:
        outer.display.expect(total, unit)


def announce(name: str) -> None:
    """Says on a terminal that work begins; the next line takes its place."""
    if sys.stderr.isatty():
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)


_outer: ContextVar[Progress | None] = ContextVar("outer", default=None)

_stage: Progress | None = None


def _leave_stage() -> None:
    global _stage
    _stage = None


class _Display:
    """The line of the outermost work. Each unit that it counts has a meter, one after the other."""

    def __init__(self, name: str, stream: Any, *, side: bool = False, stage: bool = False):
        self._name, self._side, self._stage = name, side, stage
        self.stream = stream
        # A notebook draws over a line too.
        self.live = stream.isatty() or "ipykernel" in sys.modules
        self._lock = RLock()
        self._began = monotonic()
        self.meter: tqdm | None = None
        self._unit, self._moving = "", False
        self._counts: dict[str, int] = {}
        self._found = 0
        self._counting = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """While work is counted, no other unit takes the place of its own."""
        with self._lock:
            self._counting += 1
        try:
            yield
        finally:
            with self._lock:
                self._counting -= 1

    def expect(self, total: int | None, unit: str) -> None:
        with self._lock:
            if self.meter is not None and unit == self._unit:
                if total is not None and self.meter.total is not None:
                    self.meter.total += total
                return
            if self._counting:
                raise ValueError(
                    f"cannot expect {unit}s while {self._unit}s are counted: end that work first"
                )
            if self.meter is not None:
                self.meter.close()
            self._unit, self._moving = unit, False
            self._counts.setdefault(unit, 0)
            self.meter = self._new_meter(total, unit)

    def _new_meter(self, total: int | None, unit: str) -> tqdm:
        # Over the whole time, for a stage's parts take turns at speeds of their own.
        common: dict[str, Any] = {"total": total, "desc": self._name, "smoothing": 0}
        common |= {"unit": f" {unit}", "unit_scale": unit == "B", "file": self.stream}
        if self.live:
            delay = _SIDE_SECONDS if self._side else 0
            # Its own count of rows hides the bar where a terminal does not tell how many it has.
            return tqdm(**common, leave=False, nrows=20, delay=delay)
        form = "{desc}: {n_fmt}{unit}s, {rate_fmt}{postfix}"
        if total is not None:
            form = "{desc}: {percentage:.0f} %, {n_fmt}/{total_fmt}{unit}s, {rate_fmt}, "
            form += "{remaining} left{postfix}"
        every = {"mininterval": _LINE_SECONDS, "delay": _LINE_SECONDS, "miniters": 1}
        return _Lines(**common, **every, bar_format=form)

    def make_room(self, total: int | None, unit: str) -> bool:
        """Sees to it that so much can be counted; False where it is another unit's turn."""
        with self._lock:
            if self.meter is None:
                self.expect(total, unit)
            elif unit == self._unit and total is not None and self.meter.total is not None:
                self.meter.total = max(self.meter.total, self.meter.n + total)
            return unit == self._unit

    def update(self, count: int, found: bool) -> None:
        with self._lock:
            assert self.meter is not None
            self._counts[self._unit] += count
            if found:
                self._found += count
            if self.meter.disable:  # by TQDM_DISABLE
                return
            if found:  # which is no part of the rate
                self.meter.n += count
                self.meter.initial += count
                self.meter.last_print_n += count
                return
            if not self._moving:
                # Its beginning holds what is done once, such as compiling: no speed to go by.
                self._moving = True
                self.meter.initial += count
                self.meter.start_t = self.meter.last_print_t = self.meter._time()
                self.meter.n += count
                self.meter.last_print_n += count
                if self.live and not self._side:
                    self.meter.refresh()
            else:
                self.meter.update(count)

    def note(self, text: str) -> None:
        if self.meter is not None and not self.meter.disable:
            self.meter.set_postfix_str(text, refresh=False)

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        seconds = monotonic() - self._began
        text = None
        if kind is None:
            if self._stage or (not self._side and (self.live or seconds >= _SHORT_SECONDS)):
                text = self._summary(seconds)
        elif self.meter is not None and any(self._counts.values()):
            text = str(self.meter)  # how far it came
        disabled = self.meter is not None and self.meter.disable
        if self.meter is not None:
            self.meter.close()
        if text is not None and not disabled:
            tqdm.write(text, file=self.stream)

    def _summary(self, seconds: float) -> str:
        counts = {unit: count for unit, count in self._counts.items() if count}
        counted = " and ".join(f"{n:,} {unit}{'s' * (n != 1)}" for unit, n in counts.items())
        if self._found:
            counted += f" ({self._found:,} from before)"
        parts = [counted] * bool(counts) + [_duration(seconds)]
        made = sum(counts.values()) - self._found
        if len(counts) == 1 and made:
            parts.append(f"{_short(made / max(seconds, 1e-3))} {next(iter(counts))}s/s")
        return f"{self._name}: {', '.join(parts)}"


class _Lines(tqdm):
    """A meter for files: lines in place of a bar that is drawn over."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and self.n != self.total:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Lines stay."""

    def close(self) -> None:
        if not self.disable:
            self.disable: bool = True
            self._decr_instances(self)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"

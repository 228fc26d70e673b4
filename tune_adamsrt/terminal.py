"""What a person sees while a search runs: one live view on a terminal, plain lines in a file or a pipe.

What is shown is text from `terminal_text`.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from tune_adamsrt.formats import format_hyper_parameters, one_line
from tune_adamsrt.progress import Progress
from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.terminal_text import (
    is_confirmation,
    render_aligned,
    render_best,
    render_heading,
    render_live,
    render_position,
    render_summary,
    render_trial_line,
    rows_after_resize,
    unit_of,
)

_QUIET_S = 300.0  # a log that has been silent for this long gets a line, so that nobody thinks that the search hangs


class TerminalView:
    """Shows a search to a person: an Observer, and what else the driver has to say.

    On a terminal one view is redrawn in place, and only new bests and failures leave a line above it. Elsewhere (a
    file, a pipe, TERM=dumb) every ended trial is one plain line without control characters. Output that can't be
    written any more (a closed pipe) is dropped: the search goes on, its results are in the study.

    Args:
        console: where to print; standard output by default.
        clock: seconds that never go back.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # without the isatty, FORCE_COLOR (which CI systems set) would draw the live view into their logs
        self._console = console or Console(force_interactive=None if sys.stdout.isatty() else False)
        self._clock = clock
        self._progress: Progress | None = None
        self._info: SearchInfo | None = None  # of the search, also while its best are confirmed
        self._live: Live | None = None
        self._lock = threading.Lock()  # held to change _progress and to draw it; never while printing
        self._drawn_width = 0
        self._drawn_lengths: list[int] = []
        self._last_printed = clock()

    def search_started(self, info: SearchInfo) -> None:
        """Show a search, or the confirmation that follows it and belongs to the same summary."""
        if self._live is not None:
            self._live.transient = True
        self.close()
        if info.role == "search":
            self._info = info
        self._progress = Progress(info, started=self._clock())
        self._drawn_lengths = []
        if not self._console.is_interactive:
            at_most = "" if is_confirmation(self._progress) else "at most "
            budget = f"{info.trials} {unit_of(self._progress)} of {at_most}{info.epochs} epochs"
            if info.is_bound_by_epochs:
                budget = f"at most {info.max_epochs_spent} epochs in trials of at most {info.epochs}"
            self._print(Text(f"{render_heading(self._progress)}   {budget}"))
            return
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=2,
            redirect_stdout=sys.stdout.isatty(),  # a redirected stream stays redirected
            redirect_stderr=sys.stderr.isatty(),
        )
        self._safely(self._live.start)

    def trial_started(self, trial: TrialRecord) -> None:
        self._take(trial)

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None:
        self._take(trial, report)
        if self._live is None:
            self.refresh()

    def trial_ended(self, trial: TrialRecord) -> None:
        progress = self._progress
        if progress is None:
            return
        self._take(trial)
        if self._live is None:
            self._print(Text(render_trial_line(progress, trial, self._clock())))
        elif trial.state is TrialState.FAILED:
            name = f"trial {trial.number}" if trial.confirms is None else one_line(trial.origin)
            what = f"{name} failed at epoch {trial.epoch}: {one_line(trial.reason) or 'no reason given'}"
            self._print(Text(f"{what}  {format_hyper_parameters(trial.hyper_parameters)}", style="red"), wrap=True)
        elif trial is progress.best and trial.confirms is None:
            self._print(Text(f"new best  {render_best(progress)}", style="green"), wrap=True)

    def search_ended(self, summary: SearchSummary) -> None:
        """Take the live view away and print what the search came to."""
        info = self._info
        if self._live is not None:
            self._live.transient = True
        self.close()
        self._progress = self._info = None
        if info is None:
            return
        (name, how), *rows = render_summary(info, summary)
        self._print(Text.assemble("\n", (name, "bold"), f": {how}"))
        for line in render_aligned(rows, width=self._console.width if self._console.is_interactive else None):
            self._print(Text(line))

    def show_where(self, lines: Sequence[tuple[str, str]]) -> None:
        """Print labelled paths and commands, one per line, whole and as they are, so that they can be copied."""
        self._print(Text(""))
        for line in render_aligned(lines):
            self._print(Text(line))

    def warn(self, message: str) -> None:
        """Print a warning, in one line, above the live view."""
        self._print(Text(f"warning: {one_line(message)}", style="yellow"))

    def note(self, message: str) -> None:
        """Print something worth knowing, in one line, above the live view."""
        self._print(Text(one_line(message)))

    def refresh(self) -> None:
        """Bring the view up to date; where there is none, print a line if nothing was printed for minutes."""
        now = self._clock()
        if self._live is not None:
            self._safely(self._live.refresh)
        elif self._progress is not None and now - self._last_printed >= _QUIET_S:
            running = len(self._progress.in_state(TrialState.RUNNING))
            self._print(Text(f"{running} running   [{render_position(self._progress, now)}]"))

    def close(self) -> None:
        """Give the terminal back. Safe to call twice; notes and warnings can still be printed."""
        live, self._live = self._live, None
        if live is not None:
            self._safely(live.stop)

    def _take(self, trial: TrialRecord, report: EpochReport | None = None) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.trials[trial.number] = trial
                if report is not None:
                    self._progress.add_report(self._clock(), report.seconds)

    def _draw(self) -> RenderableType:
        width, height = self._console.size
        with self._lock:
            if self._progress is None:
                return Text("")
            view = render_live(self._progress, self._clock(), width=width, height=height)
            if width < self._drawn_width:
                # The terminal has wrapped the lines of the last drawing. rich goes up as many rows as it has drawn, so
                # clear the others here.
                extra = rows_after_resize(self._drawn_lengths, width) - len(self._drawn_lengths)
                row = (ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
                self._console.control(Control(*row * extra))
            lines = self._console.render_lines(view, self._console.options, pad=False)
            self._drawn_width, self._drawn_lengths = width, [Segment.get_line_length(line) for line in lines]
        return view

    def _print(self, text: Text, *, wrap: bool = False) -> None:
        encoding = self._console.encoding
        text.plain = text.plain.encode(encoding, "replace").decode(encoding)
        if not self._console.is_interactive:
            text = Text(text.plain)  # FORCE_COLOR would print the styles
        self._last_printed = self._clock()
        if self._live is not None:
            self._safely(self._live.refresh)  # notices a resize before anything is drawn above the view
        self._safely(lambda: self._console.print(text, soft_wrap=not (wrap and self._console.is_interactive)))

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, SystemExit):  # rich exits on a closed pipe
            self._console.quiet = True

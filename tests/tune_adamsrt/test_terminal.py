"""The terminal view: what is rendered, then what is printed on a terminal and in a pipe."""

import dataclasses
import io
import re
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from search_records import add_reports, make_info, make_progress, make_report, make_trial

from tune_adamsrt.progress import Progress
from tune_adamsrt.records import Confirmation, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.terminal import TerminalView
from tune_adamsrt.terminal_text import (
    render_best,
    render_counts,
    render_heading,
    render_live,
    render_running,
    render_standings,
    render_summary,
    render_time_left,
    render_trial_line,
    rows_after_resize,
)

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_console(*, terminal: bool, width: int = 80, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        force_interactive=terminal,
        width=width,
        height=height,
        color_system="truecolor" if terminal else "auto",
        legacy_windows=False,
        _environ={},
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(progress: Progress, *, width: int = 80, height: int = 24, now: float = 60.0) -> list[str]:
    console = make_console(terminal=False, width=width, height=height)
    console.print(render_live(progress, now, width=width, height=height))
    return written(console).splitlines()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_view(clock: Clock) -> Iterator[Callable[[Console], TerminalView]]:
    views: list[TerminalView] = []

    def build(console: Console) -> TerminalView:
        views.append(TerminalView(console, clock))
        return views[-1]

    yield build
    for view in views:
        view.close()


def test_counts_include_every_state() -> None:
    progress = make_progress(
        make_trial(0, TrialState.COMPLETE, 10),
        make_trial(1, TrialState.STOPPED, 2, epochs_repeated=1),
        make_trial(2, TrialState.FAILED, 3),
        make_trial(3, TrialState.RUNNING, 4),
    )
    assert render_counts(progress).plain == "1 complete   1 running   1 stopped   1 failed"


def test_best_is_a_candidate_and_until_there_is_one_the_best_running_trial() -> None:
    stopped = make_trial(1, TrialState.STOPPED, 2, value=0.99)
    leader = make_trial(2, TrialState.RUNNING, 4, value=0.95)
    nan = make_trial(3, TrialState.RUNNING, 4, value=float("nan"))
    assert render_best(make_progress(stopped)) == "-"
    assert render_best(make_progress(stopped, nan, leader)).startswith("95.00 % so far at epoch 4  trial 2  lr=0.0123")
    # a lower value, but at the full budget; stopped and running trials do not compare with it
    candidate = make_trial(4, TrialState.COMPLETE, 10, value=0.9)
    short = make_trial(5, TrialState.COMPLETE, 9, value=0.99)
    assert render_best(make_progress(stopped, leader, candidate, short)).startswith("90.00 %  trial 4  lr=")


def test_time_left_is_unknown_until_a_trial_has_ended_and_respects_the_time_budget() -> None:
    running = make_trial(0, TrialState.RUNNING, 3)
    progress = make_progress(running)
    now = add_reports(progress, every_s=10.0, count=3)
    assert render_time_left(progress, now) == "time left -"
    limited = make_progress(running, time_budget_s=50.0)
    add_reports(limited, every_s=10.0, count=3)
    assert render_time_left(limited, now) == "at most 20 s left"
    limited.trials[1] = make_trial(1, TrialState.STOPPED, 5)
    assert render_time_left(limited, now) == "about 20 s left"
    assert render_time_left(limited, 60.0) == "about 5 s left"
    progress.trials[1] = limited.trials[1]  # (14 to come x 5 epochs + 2) x 10 s
    assert render_time_left(progress, now) == "about 12 min left"


def test_a_campaign_shows_its_place_its_epochs_and_the_time_that_all_of_it_takes() -> None:
    bound = {"trials": 60, "max_epochs_spent": 40, "position": "search 3 of 7", "epochs_after": 120}
    trials = [make_trial(0, TrialState.COMPLETE, 10), make_trial(1, TrialState.STOPPED, 4)]
    progress = make_progress(*trials, **bound)
    now = add_reports(progress, every_s=2.0, count=14)
    assert render_heading(progress).startswith("resnet20-digits/adamsrt   search 3 of 7   tpe/asha")
    # 26 epochs of 2 s are left of this search, though 58 trials more are allowed; then 120 of the others.
    assert render_time_left(progress, now) == "about 55 s left, all: about 5 min"
    assert "[2 trials, 14/40 epochs, " in render_trial_line(progress, trials[0], now)
    lines = shown(progress, now=now)
    assert any(re.search(r"^trials +2 *$", line) for line in lines), lines
    assert render_time_left(make_progress(*trials, **(bound | {"epochs_after": 0})), now) == "time left -"


def test_nothing_is_left_when_all_trials_have_ended() -> None:
    progress = make_progress(make_trial(0, TrialState.COMPLETE, 10), trials=1)
    assert render_time_left(progress, 1.0) == "all trials ended"


def test_heading_shows_the_tags_that_are_there() -> None:
    assert render_heading(make_progress()) == "resnet20-digits/adamsrt   tpe/asha   2 trials at once   cpu"
    assert render_heading(make_progress(tags={})) == "resnet20-digits/adamsrt"


def test_live_view_shows_progress_best_and_running_trials() -> None:
    progress = make_progress(
        make_trial(0, TrialState.COMPLETE, 10, value=0.98611),
        make_trial(1, TrialState.STOPPED, 2),
        make_trial(12, TrialState.RUNNING, 4, value=0.5),
    )
    add_reports(progress, every_s=2.0, count=20)
    view = "\n".join(shown(progress, now=40.0))
    assert re.search(r"trials .* 2 of 16 *\n", view)
    assert re.search(r"epochs .* 16 of at most 160 *\n", view)
    assert "1 complete   1 running   1 stopped   0 failed" in view
    assert "98.61 %  trial 0  lr=0.0123 betas=(0.9, 0.99) weight_decay=0" in view
    assert "30 epochs/min   elapsed 40 s   about 3 min left" in view
    assert re.search(r"12 +4/10 +50\.00 % +0\.0123 +\(0\.9, 0\.99\) +0", view)


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 20), (40, 12), (40, 5), (10, 3)])
def test_live_view_fits_the_terminal(width: int, height: int) -> None:
    trials = [make_trial(number, TrialState.RUNNING, 1) for number in range(1, 90)]
    progress = make_progress(make_trial(0, TrialState.COMPLETE, 10), *trials, trials=100, max_epochs_spent=1000)
    add_reports(progress, every_s=1.0, count=30)
    lines = shown(progress, width=width, height=height)
    assert max(len(line) for line in lines) <= width
    if height >= 12:
        assert len(lines) < height
    if height >= 20:
        listed = sum(" 1/10 " in line for line in lines)
        assert listed >= 4
        assert lines[-1] == f"and {89 - listed} more"


def test_running_trials_leave_out_columns_that_do_not_fit() -> None:
    progress = make_progress(make_trial(7, TrialState.RUNNING, 4, value=0.5))
    heading, row = render_running(progress, width=38, rows=9)
    assert heading.plain.split() == ["trial", "epoch", "accuracy", "lr"]
    assert row.plain.split() == ["7", "4/10", "50.00", "%", "0.0123"]
    heading, row = render_running(progress, width=52, rows=9)
    assert heading.plain.split()[-2:] == ["betas", "weigh.."]  # the heading is cut, its value is whole
    assert row.plain.endswith("(0.9, 0.99)  0")


def test_lines_for_ended_trials() -> None:
    complete = make_trial(7, TrialState.COMPLETE, 10, value=0.98611)
    stopped = make_trial(3, TrialState.STOPPED, 2, value=0.912, reason="rung 2: not in the best third")
    failed = make_trial(11, TrialState.FAILED, 3, reason="diverged:\n\x1b[31mloss is nan")
    progress = make_progress(complete, stopped, failed)
    progress.add_report(1.0, 1.0)
    left = "[3/16 trials, 15/160 epochs, best 98.61 %, about 1 min left]"
    configuration = "lr=0.0123 betas=(0.9, 0.99) weight_decay=0"
    assert render_trial_line(progress, complete, 1.0) == (
        f"trial  7 complete  98.61 % at epoch 10  {configuration}   {left}"
    )
    assert render_trial_line(progress, stopped, 1.0) == (
        f"trial  3 stopped   91.20 % at epoch 2  (rung 2: not in the best third)   {left}"
    )
    assert render_trial_line(progress, failed, 1.0) == (
        f"trial 11 failed    at epoch 3: diverged: loss is nan  {configuration}   {left}"
    )


def make_summary(*trials: TrialRecord, best: TrialRecord | None) -> SearchSummary:
    candidates = sum(trial.state is TrialState.COMPLETE for trial in trials)
    spent = sum(trial.epochs_spent for trial in trials)
    return SearchSummary(best, candidates, trials, spent, seconds=200.0, ended_by="all trials done")


def test_summary_says_how_it_ended_and_gives_the_best_configuration_exactly() -> None:
    best = make_trial(7, TrialState.COMPLETE, 10, value=0.98611, origin="sampled by tpe")
    summary = make_summary(best, make_trial(1, TrialState.STOPPED, 2), make_trial(2, TrialState.FAILED, 3), best=best)
    assert render_summary(make_info(), summary) == [
        ("resnet20-digits/adamsrt", "all trials done, after 3 min 20 s"),
        ("trials", "3 of 16: 1 complete, 1 stopped, 1 failed"),
        ("epochs spent", "15 of at most 160, stopped and failed trials included"),
        ("validation accuracy", "98.61 %"),
        ("best", "trial 7, best of 1 trial at the full budget of 10 epochs (sampled by tpe)"),
        ("  lr", "0.0123456789"),
        ("  betas", "(0.9, 0.99)"),
        ("  weight_decay", "0"),
    ]


def confirm_run(confirms: int, seed: int, value: float, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    run = make_trial(seed, state, 10 if state is TrialState.COMPLETE else 4, value, confirms=confirms)
    run.seed, run.origin = 2**31 + seed, f"trial {confirms}, seed {seed} of 2"
    return run


def make_confirmation() -> Confirmation:
    candidate = make_trial(3, TrialState.COMPLETE, 10, value=0.97)
    candidate.hyper_parameters = {"lr": 0.5}
    runs = (confirm_run(3, 1, 0.95), confirm_run(3, 2, 0.97), confirm_run(7, 1, 0.9), confirm_run(7, 2, 0.9))
    return Confirmation(candidate, runs, (0.94, 0.95), candidates=2)


def test_summary_of_a_confirmed_search_gives_means_with_their_spread_and_what_was_exported() -> None:
    best = make_trial(7, TrialState.COMPLETE, 10, value=0.98611)
    summary = dataclasses.replace(make_summary(best, best=best), confirmation=make_confirmation())
    assert render_summary(make_info(), summary)[2:] == [
        ("epochs spent", "10 of at most 160, stopped and failed trials included, plus 40 to confirm"),
        ("validation accuracy", "98.61 %"),
        ("best", "trial 7, best of 1 trial at the full budget of 10 epochs"),
        ("confirmed", "96.00 % +- 1.41 (2 fresh seeds, trial 3)"),
        ("test accuracy", "94.50 % +- 0.71"),
        ("  lr", "0.5"),
    ]


def test_summary_where_nothing_was_confirmed_claims_nothing() -> None:
    best = make_trial(7, TrialState.COMPLETE, 10, value=0.98611)
    nothing = Confirmation(None, (confirm_run(7, 1, 0.5, TrialState.FAILED),), (), candidates=1)
    rows = dict(render_summary(make_info(), dataclasses.replace(make_summary(best, best=best), confirmation=nothing)))
    assert not {"confirmed", "test accuracy"} & rows.keys()


def test_a_confirmation_shows_its_stage_the_means_so_far_and_seeds() -> None:
    progress = make_progress(
        confirm_run(3, 1, 0.95),
        confirm_run(7, 1, 0.9),
        confirm_run(3, 2, 0.97),
        dataclasses.replace(confirm_run(7, 2, 0.5, TrialState.RUNNING), number=9),
        role="confirmation",
        trials=4,
        max_epochs_spent=40,
    )
    add_reports(progress, every_s=2.0, count=20)
    view = "\n".join(shown(progress, now=40.0, width=100))
    assert "resnet20-digits/adamsrt   confirming on fresh seeds   2 trials at once" in view
    assert re.search(r"runs .* \d of 4 *\n", view)
    assert "best" not in view
    assert re.search(r"trial +epoch +accuracy +seed +lr", view)
    assert re.search(r" 7 +4/10 +50\.00 % +2147483650 +0\.0123", view)
    line = render_trial_line(progress, confirm_run(3, 1, 0.95), 40.0)
    assert line.startswith("trial 3, seed 1 of 2 complete  95.00 % at epoch 10  lr=0.0123")
    assert "runs, " in line and "best" not in line


def test_the_standings_of_a_confirmation() -> None:
    runs = [confirm_run(7, 1, 0.9), confirm_run(3, 1, 0.95), confirm_run(7, 2, 0.99), confirm_run(3, 2, 0.97)]
    for number, run in enumerate(runs):
        run.number = number
    assert render_standings(make_progress(*runs, role="confirmation")) == (
        "trial 3 96.00 % +- 1.41 (2 seeds), trial 7 94.50 % +- 6.36 (2 seeds)"
    )
    assert render_standings(make_progress(role="confirmation")) == "-"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_confirmation_follows_its_search_in_one_summary(
    terminal: bool, clock: Clock, open_view: Callable[[Console], TerminalView]
) -> None:
    console = make_console(terminal=terminal, width=100)
    view = open_view(console)
    best = make_trial(3, TrialState.COMPLETE, 10, value=0.97)
    view.search_started(make_info(trials=1, max_epochs_spent=10))
    view.trial_started(best)
    view.trial_ended(best)
    view.search_started(make_info(trials=2, max_epochs_spent=20, role="confirmation"))
    for run in (confirm_run(3, 1, 0.95), confirm_run(3, 2, 0.97, TrialState.FAILED)):
        run.reason = "" if run.state is TrialState.COMPLETE else "diverged"
        view.trial_started(run)
        view.trial_ended(run)
    view.refresh()
    view.search_ended(dataclasses.replace(make_summary(best, best=best), confirmation=make_confirmation()))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(console))
    assert text.count("confirming on fresh seeds") >= 1
    if terminal:
        assert text.count("new best") == 1, "of the search; a single run on one seed is no best"
        assert "trial 3, seed 2 of 2 failed at epoch 4: diverged" in text
    else:
        assert "trial 3, seed 2 of 2 failed" in text
    assert text.count("all trials done, after") == 1
    assert "1 of 1: 1 complete" in text, "the summary is the search's"
    assert "96.00 % +- 1.41 (2 fresh seeds, trial 3)" in text


def test_summary_without_a_candidate_says_so() -> None:
    summary = make_summary(make_trial(1, TrialState.STOPPED, 2), best=None)
    assert render_summary(make_info(), summary)[-1] == ("best", "none: no trial reached the full budget of 10 epochs")


def test_rows_after_resize_counts_wrapped_lines() -> None:
    assert rows_after_resize([0, 10, 20, 21, 60], 20) == 1 + 1 + 1 + 2 + 3


WHERE = [
    ("exported", "best_hyper_parameters.py ['digits']['resnet20']['adamsrt']"),
    ("study", "[red]not markup[/red] [/] :smile: " + "/".join(["long"] * 60)),
]


def replay(view: TerminalView, clock: Clock) -> None:
    """A search of three trials: one complete, one stopped, one failed; a warning in between."""
    view.search_started(make_info(trials=3, max_epochs_spent=30))
    trials = [make_trial(number, TrialState.RUNNING, 0) for number in range(3)]
    for trial, epochs in zip(trials, (10, 2, 1), strict=True):
        view.trial_started(trial)
        for epoch in range(1, epochs + 1):
            clock.now += 2.0
            trial.epochs.append(make_report(epoch, 0.9))
            view.epoch_reported(trial, trial.epochs[-1])
    view.warn("the server [http://x] does\nnot answer")
    ends = [
        (TrialState.COMPLETE, ""),
        (TrialState.STOPPED, "rung 2"),
        (TrialState.FAILED, "loss is nan [/bold] \u2260"),
    ]
    for trial, (state, reason) in zip(trials, ends, strict=True):
        trial.state, trial.reason = state, reason
        view.trial_ended(trial)
    view.refresh()
    view.search_ended(make_summary(*trials, best=trials[0]))
    view.show_where(WHERE)
    view.close()


def test_a_pipe_gets_plain_whole_lines(clock: Clock, open_view: Callable[[Console], TerminalView]) -> None:
    console = make_console(terminal=False, width=20)
    replay(open_view(console), clock)
    text = written(console)
    assert not CONTROL.search(text)
    lines = text.splitlines()
    assert lines[0] == ("resnet20-digits/adamsrt   tpe/asha   2 trials at once   cpu   3 trials of at most 10 epochs")
    assert lines[1] == "warning: the server [http://x] does not answer"
    assert [line.split("  ")[0].split()[:3] for line in lines[2:5]] == [
        ["trial", "0", "complete"],
        ["trial", "1", "stopped"],
        ["trial", "2", "failed"],
    ]
    assert "[1/3 trials, 13/30 epochs, best 90.00 %, about" in lines[2]
    assert lines[4].endswith("[3/3 trials, 13/30 epochs, best 90.00 %, all trials ended]")
    assert "resnet20-digits/adamsrt: all trials done, after 3 min 20 s" in lines
    assert "  lr                 0.0123456789" in lines
    assert lines[-2:] == [f"{label:<8}  {value}" for label, value in WHERE]


def test_a_terminal_gets_one_live_view_and_a_quiet_history(
    clock: Clock, open_view: Callable[[Console], TerminalView]
) -> None:
    console = make_console(terminal=True, width=100)
    replay(open_view(console), clock)
    raw = written(console)
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") == 1  # the cursor is hidden once, and given back
    last_view, summary = raw.rindex("all trials ended"), raw.rindex("all trials done")
    assert raw[last_view:summary].count("\x1b[1A\x1b[2K") >= 7  # the view is gone before the summary is printed
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
    assert "warning: the server [http://x] does not answer\n" in text
    assert "new best  90.00 %  trial 0  lr=0.0123" in text
    assert "trial 2 failed at epoch 1: loss is nan [/bold] \u2260  lr=0.0123" in text
    assert "rung 2" not in text  # stopped trials leave no history
    assert "13 of at most 30" in text
    for label, value in WHERE:
        assert f"{label:<8}  {value}\n" in text


def test_dumb_terminals_and_no_color(clock: Clock, open_view: Callable[[Console], TerminalView]) -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    replay(open_view(dumb), clock)
    assert not CONTROL.search(written(dumb))
    plain = Console(
        file=io.StringIO(), force_terminal=True, width=80, _environ={"NO_COLOR": "1", "TERM": "xterm-256color"}
    )
    replay(open_view(plain), clock)
    styles = re.findall(r"\x1b\[([0-9;]*)m", written(plain))
    assert "1" in styles  # bold stays
    assert not [style for style in styles if re.search(r"\b(3[0-8]|4[0-8]|9[0-7])\b", style)]


def test_redirected_output_stays_plain_where_ci_forces_colour(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    replay(TerminalView(clock=clock), clock)
    text = capsys.readouterr().out
    assert "trial 0 complete" in text
    assert not CONTROL.search(text)


def test_an_encoding_that_lacks_a_character_does_not_stop_a_search(
    clock: Clock, open_view: Callable[[Console], TerminalView]
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    replay(open_view(Console(file=file, width=80, _environ={})), clock)
    file.seek(0)
    assert "loss is nan [/bold] ?" in file.read()


def test_a_closed_pipe_does_not_stop_a_search(clock: Clock, open_view: Callable[[Console], TerminalView]) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no reader")

    replay(open_view(Console(file=Closed(), width=80, _environ={})), clock)


def test_a_narrower_terminal_clears_the_rows_that_it_wrapped(
    clock: Clock, open_view: Callable[[Console], TerminalView]
) -> None:
    console = make_console(terminal=True, width=100)
    view = open_view(console)
    view.search_started(make_info())
    view.refresh()
    before, drawn = len(written(console)), written(console).rsplit("\x1b[2K", 1)[-1].count("\n") + 1
    console.width = 50
    view.refresh()
    erased = written(console)[before:].split("trials")[0].count("\x1b[1A")
    assert erased > drawn - 1  # as many as drawn, and those that long lines were wrapped to


def test_a_silent_log_gets_a_line_after_minutes(clock: Clock, open_view: Callable[[Console], TerminalView]) -> None:
    console = make_console(terminal=False)
    view = open_view(console)
    view.search_started(make_info())
    view.trial_started(make_trial(0, TrialState.RUNNING, 3, value=0.5))
    clock.now = 200.0
    view.refresh()
    assert "running" not in written(console)
    clock.now = 301.0
    view.refresh()
    view.refresh()
    assert written(console).count("1 running   [0/16 trials, 3/160 epochs, best 50.00 % so far at epoch 3") == 1


def test_searches_can_follow_each_other_and_notes_need_no_search(
    clock: Clock, open_view: Callable[[Console], TerminalView]
) -> None:
    console = make_console(terminal=True)
    view = open_view(console)
    view.note("data [1437 images]")
    view.refresh()
    replay(view, clock)
    replay(view, clock)
    view.warn("late")
    text = written(console)
    assert "data [1437 images]\n" in text
    assert text.count("all trials done") == 2
    assert "warning: late" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_resumed_search_starts_from_where_it_was(
    terminal: bool, clock: Clock, open_view: Callable[[Console], TerminalView]
) -> None:
    console = make_console(terminal=terminal, width=100)
    view = open_view(console)
    running = make_trial(7, TrialState.RUNNING, 4, value=0.5)
    restored = [make_trial(0, TrialState.COMPLETE, 10, value=0.98611)]
    restored += [make_trial(number, TrialState.STOPPED, 2) for number in range(1, 7)] + [running]
    view.search_started(make_info(restored=restored))
    view.refresh()
    heading = "resnet20-digits/adamsrt   tpe/asha   2 trials at once   cpu   resumed: 7 of 16 trials ended before"
    if terminal:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(console))
        assert " ".join(heading.split()) in " ".join(text.split())
        assert re.search(r"trials .* 7 of 16", text) and re.search(r"epochs .* 26 of at most 160", text)
        assert "1 complete   1 running   6 stopped   0 failed" in text
        assert "98.61 %  trial 0" in text and "- epochs/min" in text
        assert re.search(r"7 +4/10 +50\.00 %", text)
    else:
        assert written(console).splitlines() == [f"{heading}   16 trials of at most 10 epochs"]
    running.epochs += [make_report(epoch, 0.99) for epoch in range(5, 11)]
    running.state = TrialState.COMPLETE
    view.trial_ended(running)
    news = "new best  99.00 %  trial 7" if terminal else "[8/16 trials, 32/160 epochs, best 99.00 %, time left -]"
    assert news in written(console)
    view.refresh()
    assert "resumed: 8" not in written(console)  # the heading stays

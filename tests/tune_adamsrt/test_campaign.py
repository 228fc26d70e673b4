"""Searches that are made to be compared: equal epochs, what is left to do, and a killed campaign that goes on."""

import argparse
import dataclasses
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from search_records import make_info, make_report
from tune_controller import Tune

from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.budget import Budget
from tune_adamsrt.campaign import check_campaign, epochs_to_do, goes_on, is_done, studies_of, with_equal_epochs
from tune_adamsrt.plan import make_plans
from tune_adamsrt.records import TrialState
from tune_adamsrt.report import main as report
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.scheduler import Promotion, SuccessiveHalving
from tune_adamsrt.searcher import StudySearcher
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import StudyError, open_storage
from tune_adamsrt.studies import load_search
from tune_adamsrt.study import ListedRun, Study

REPOSITORY = Path(__file__).parents[2]
EPOCHS = 8
TOTAL = 60


def make_study(storage, name, **changes):
    values = {
        "storage": storage,
        "space": build_search_space(load_setting("resnet20-digits"), "adamsrt"),
        "sampler": "random",
        "seed": 0,
        "protocol": {"epochs": EPOCHS},
    }
    return Study(name, **(values | changes))


def search(study, *, slots, scheduler, seed):
    """Run a search of made-up curves as Tune does, until the searcher has had enough; some trials diverge."""
    draws = random.Random(seed)
    budget = Budget(study, trials=10**6, max_total_epochs=TOTAL, reserves=True)
    rungs = Rungs((2, 4), reduction_factor=2)
    tune = Tune(StudySearcher(study, budget, rungs), scheduler(study, rungs, budget))
    running, names, waits = {}, iter(range(10**6)), 0
    while True:
        while len(running) < slots:
            name = str(next(names))
            suggested = tune.start(name)
            if not isinstance(suggested, dict):
                break
            running[name] = suggested["trial_number"]
        if suggested == Searcher.FINISHED and not running:
            return waits
        waits += suggested is None
        name = draws.choice(list(running))
        number = running[name]
        epoch = study.trials[number].epoch + 1
        report = dataclasses.asdict(make_report(epoch, draws.random())) | {"trial_number": number}
        if draws.random() < 0.03:
            report |= {"failure": "diverged", "value": float("nan")}
        report["done"] = epoch == EPOCHS or "failure" in report
        if tune.result(name, report) == TrialScheduler.STOP:
            del running[name]


@pytest.mark.parametrize("scheduler", [SuccessiveHalving, Promotion])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_every_search_spends_its_epochs_and_not_one_more(tmp_path, slots, scheduler):
    """Whatever is stopped, paused or fails, and in whatever order results come."""
    waits = 0
    for seed in range(4):
        study = make_study(open_storage(str(tmp_path / f"{seed}.journal")), "s")
        waits += search(study, slots=slots, scheduler=scheduler, seed=seed)
        assert TOTAL - EPOCHS < study.epochs_spent <= TOTAL
        assert all(trial.has_ended for trial in study.trials.values())
        at_full_budget = study.in_state(TrialState.COMPLETE)
        assert at_full_budget and all(trial.epoch == EPOCHS for trial in at_full_budget)
        if scheduler is SuccessiveHalving:
            assert "epoch budget" not in {trial.reason for trial in study.trials.values()}, "none is cut short by it"
    assert (waits > 0) == (slots > 1), "several at once have to wait for each other's epochs at the end"


def test_a_lost_driver_s_trials_are_trained_first_within_the_same_total(tmp_path):
    storage = open_storage(str(tmp_path / "optuna.journal"))
    study = make_study(storage, "s")
    for epochs in (EPOCHS, 3, 1):
        trial = study.ask()
        for epoch in range(1, epochs + 1):
            study.report(trial.number, make_report(epoch, 0.5))
    study.tell_complete(0)
    again = make_study(storage, "s")  # the driver was killed
    assert len(again.interrupted) == 2
    search(again, slots=2, scheduler=SuccessiveHalving, seed=0)
    assert TOTAL - EPOCHS < again.epochs_spent <= TOTAL
    assert all(trial.has_ended for trial in again.trials.values())


def plans_of(*options):
    arguments = parse_arguments(["--setting", "resnet20-digits", *options])
    check_campaign(arguments)
    return [with_equal_epochs(plan) for plan in make_plans(arguments)]


def test_all_optimizers_get_the_same_epochs_seeds_and_no_first_points():
    plans = plans_of("--optimizer", "all")
    assert len(plans) == 7
    for plan in plans:
        assert (plan.max_epochs_spent, plan.trials) == (240, 60), "as many as 24 trials in full; 60 of 4 epochs"
        assert (plan.confirm_seeds, plan.first_points, plan.seed) == (5, (), 0)
    assert len({plan.campaign for plan in plans}) == 1
    assert len({plan.study_name for plan in plans}) == 7


def test_a_budget_in_epochs_and_published_points_may_be_asked_for():
    [adam, sgd] = plans_of("--optimizer", "adam", "--optimizer", "sgd", "--max-total-epochs", "100", "--campaign", "c",
                           "--first-points", "published", "--scheduler", "fifo")  # fmt: skip
    assert adam.max_epochs_spent == sgd.max_epochs_spent == 100
    assert adam.trials == sgd.trials == 10, "no trial can take less than all 10 epochs"
    assert adam.first_points and sgd.study_name == "resnet20-digits-sgd-c"


def note(study, *, campaign="c", most=240, ended_by=None, started_at=None, **changes):
    known = {"study_name": study.name, "max_epochs_spent": most, "tags": {"campaign": campaign}} | changes
    info = make_info(**known)
    study.note_start(info)
    if ended_by is not None:
        study.note_end(info, ended_by)


def test_what_is_left_to_do(tmp_path):
    storage = open_storage(str(tmp_path / "optuna.journal"))
    [plan] = plans_of("--campaign", "c", "--confirm-seeds", "2", "--confirm-candidates", "1")
    most = 240 + 2 * 10
    assert (is_done(storage, plan), epochs_to_do(storage, plan)) == (False, most), "missing"
    optuna.create_study(study_name=plan.study_name, storage=storage, direction="maximize")
    assert (is_done(storage, plan), epochs_to_do(storage, plan)) == (False, most), "killed while it was made"
    study = make_study(storage, plan.study_name, protocol={"epochs": 2})
    note(study)
    trial = study.ask()
    for epoch in (1, 2):
        study.report(trial.number, make_report(epoch, 0.5))
    assert (is_done(storage, plan), epochs_to_do(storage, plan)) == (False, most - 2), "begun"
    study.tell_complete(trial.number)
    for ended_by in ("interrupted", "broken off by OSError: disk"):
        note(study, ended_by=ended_by)
        assert not is_done(storage, plan)
    note(study, ended_by="epoch budget")
    assert not is_done(storage, plan), "not confirmed"
    runs = [ListedRun(trial.hyper_parameters, seed=2**31 + seed, origin="", confirms=0) for seed in range(2)]
    confirmation = make_study(
        storage, f"{plan.study_name}.2-seeds.confirm", protocol={"epochs": 2}, listed=runs, confirms=study
    )
    for _ in runs:
        run = confirmation.ask()
        for epoch in (1, 2):
            confirmation.report(run.number, make_report(epoch, 0.5))
        confirmation.tell_complete(run.number)
    assert (is_done(storage, plan), epochs_to_do(storage, plan)) == (False, most - 6), "not tested"
    confirmation.note_test(0, [0.5, 0.6])
    assert (is_done(storage, plan), epochs_to_do(storage, plan)) == (True, 0)
    assert not is_done(storage, dataclasses.replace(plan, confirm_seeds=3)), "more seeds are asked for now"
    assert not is_done(storage, dataclasses.replace(plan, max_total_epochs=300)), "and more epochs"
    assert is_done(storage, dataclasses.replace(plan, confirm_seeds=0))


def test_resume_finds_the_newest_campaign_of_these_searches(tmp_path):
    storage = open_storage(str(tmp_path / "optuna.journal"))
    plans = plans_of("--optimizer", "adam", "--optimizer", "sgd")
    with pytest.raises(StudyError, match="--resume needs an earlier campaign of these searches, got none"):
        goes_on(plans, storage)
    for campaign in ("older", "newer"):
        study = make_study(storage, f"resnet20-digits-adam-{campaign}")
        note(study, campaign=campaign, optimizer="adam")
    note(make_study(storage, "resnet20-digits-adamg-others"), campaign="others", optimizer="adamg")
    resumed = goes_on(plans, storage)
    assert [plan.study_name for plan in resumed] == ["resnet20-digits-adam-newer", "resnet20-digits-sgd-newer"]
    assert studies_of(storage, "older") == ["resnet20-digits-adam-older"]
    with pytest.raises(StudyError, match="got 'oldest'; it has newer, older, others"):
        studies_of(storage, "oldest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "grid"}, "must have equal budgets, got --sampler grid"),
        ({"trials": 3, "max_total_epochs": 30}, "got --trials 3 and --max-total-epochs 30"),
        ({"time_budget": 60.0}, "must end by epochs, got --time-budget"),
        ({"warm_start_from": "s"}, "must begin alike, got --warm-start-from s"),
        ({"study": "s"}, "--study must name the study of one search, got s"),
        ({"campaign": "../c"}, "--campaign must be letters, digits"),
    ],
)
def test_what_would_make_the_searches_unequal_is_refused(options, message):
    nothing = {"study": None, "trials": None, "max_total_epochs": None, "time_budget": None, "warm_start_from": None}
    arguments = argparse.Namespace(**({"campaign": "c", "sampler": "tpe"} | nothing | options))
    with pytest.raises(ValueError, match=message):
        check_campaign(arguments)


def test_a_total_below_one_trial_is_refused():
    with pytest.raises(ValueError, match="must leave room for one trial of 10 epochs, got 9"):
        plans_of("--campaign", "c", "--max-total-epochs", "9")


def has_trials(storage, name):
    try:
        return bool(load_search(storage, name).trials)
    except StudyError:  # there is none of that name, or it is just being made
        return False


@pytest.mark.slow(seconds=200)
def test_a_killed_campaign_goes_on_and_ends_with_a_table(tmp_path, capsys):
    options = (
        "--setting resnet20-digits --optimizer adam --optimizer sgd --epochs 2 --max-total-epochs 4 --scheduler fifo "
        "--limit-train-examples 300 --confirm-seeds 2 --confirm-candidates 1 --campaign c"
    )
    command = [sys.executable, "-m", "tune_adamsrt.search", *shlex.split(options)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "TUNE_"))}
    environment = inherited | {"PYTHONPATH": str(REPOSITORY), "ADAMSRT_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    storage, sgd = open_storage(str(tmp_path / "runs" / "optuna.journal")), "resnet20-digits-sgd-c"
    deadline = time.monotonic() + 400
    while not has_trials(storage, sgd):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.kill()
    process.communicate()

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert "resnet20-digits/adam   search 1 of 2   done before, in study resnet20-digits-adam-c" in done.stdout
    assert "resnet20-digits/sgd   search 2 of 2" in done.stdout and "resumed: 0 of 2 trials ended before" in done.stdout
    assert "runs/report/c/table.html" in done.stdout
    for name in ("resnet20-digits-adam-c", sgd):
        search = load_search(storage, name)
        assert [trial.state for trial in search.trials] == [TrialState.COMPLETE] * 2
        assert search.ended_by == "epoch budget" and search.info.max_epochs_spent == 4

    assert report(["--table", "--campaign", "c", "--output", str(tmp_path / "runs"), "--out", str(tmp_path / "t")]) == 0
    printed = capsys.readouterr().out
    assert "unequal" not in printed, "same epochs, seeds, data and versions"
    rows = pq.read_table(tmp_path / "t" / "table.parquet").to_pylist()
    assert sorted(row["optimizer"] for row in rows) == ["adam", "sgd"]

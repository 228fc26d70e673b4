"""The comments above an exported entry: what was confirmed, how, and the command that does it again."""

import dataclasses
import re
import shlex
from types import SimpleNamespace

import pytest
from search_records import make_trial

import training_example
from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.plan import make_plans
from tune_adamsrt.provenance import COMMENT_WIDTH, export_comments, rerun_command, wrapped_command
from tune_adamsrt.records import Confirmation, TrialState


@pytest.fixture
def plan(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    [plan] = make_plans(parse_arguments(["--setting", "resnet20-digits", "--limit-train-examples", "200"]))
    return plan


def confirm_run(confirms, seed, value, state=TrialState.COMPLETE):
    run = make_trial(seed, state, 10, value, confirms=confirms)
    run.seed = seed
    return run


def comments(plan, **changes):
    trials = [make_trial(number, TrialState.COMPLETE, 10) for number in range(4)]
    study = SimpleNamespace(name="a-study", trials=trials, epochs_spent=40, in_state=lambda state: trials)
    runs = (confirm_run(2, 11, 0.9), confirm_run(2, 12, 0.92), confirm_run(3, 11, 0.95, TrialState.FAILED))
    confirmation = dataclasses.replace(Confirmation(trials[2], runs, (0.8, 0.82), candidates=2), **changes)
    return export_comments(plan, study, trials[2], confirmation, cpus=2.0, run_id="abc")


def test_give_means_spreads_seeds_and_costs(plan):
    lines = comments(plan)
    text = " ".join(lines)
    assert "validation accuracy 91.00 % +- 1.41, test accuracy 81.00 % +- 1.41" in text
    assert "10 epochs, 200 training examples only; 4 candidates in 4 trials, 40 epochs spent and 30 to confirm" in text
    assert "study a-study, trial 2, MLflow run abc" in lines
    assert "seeds 11, 12;" in text
    assert "on 2 fresh seeds" in text


def test_say_which_candidate_was_ruled_out_and_how_often_the_test_set_was_read(plan):
    assert "ruled out, since a run failed: trial 3" in comments(plan)
    assert "the test set was read for 2 candidates so far" in comments(plan, tested=2)
    assert not [line for line in comments(plan) if "test set was read" in line]


def test_end_with_a_command_that_the_example_script_understands(plan):
    words = rerun_command(plan, 4_000_000_000, threads=2)
    lines = wrapped_command(words)
    assert len(lines) > 1 and all(line.endswith(" \\") for line in lines[:-1])
    assert all(len(line) <= COMMENT_WIDTH for line in comments(plan))
    assert shlex.split(re.sub(r"\\\n", " ", "\n".join(lines))) == words
    read = training_example.build_parser().parse_args(words[2:])
    assert (read.dataloader, read.model, read.optimizer) == ("digits", "resnet20", "adamsrt")
    assert (read.epochs, read.batch_size, read.valid_split, read.split_seed) == (10, 32, 0.2, 0)
    assert (read.limit_train_examples, read.seed, read.threads) == (200, 4_000_000_000, 2)


def test_of_a_search_without_confirmation_claim_one_seed(plan):
    trials = [make_trial(0, TrialState.COMPLETE, 10, 0.9)]
    study = SimpleNamespace(name="s", trials=trials, epochs_spent=10, in_state=lambda state: trials)
    lines = export_comments(plan, study, trials[0], None, cpus=1.0, run_id=None)
    assert lines[0].endswith("validation accuracy 90.00 %, one seed, not confirmed")
    assert not any("test" in line for line in lines)

"""The study: what Optuna is told, what observers hear, what can be read back."""

import math
import os

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from tune_adamsrt.journal import Journal
from tune_adamsrt.records import EpochReport, TrialState
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import StudyError, open_storage
from tune_adamsrt.study import ListedRun, Study, trial_seed

PROTOCOL = {"epochs": 3, "dataset": "digits"}


def report(epoch, value, *, train_loss=1.0):
    return EpochReport(
        epoch=epoch,
        value=value,
        train_loss=train_loss,
        train_accuracy=value,
        valid_loss=1 - value,
        valid_accuracy=value,
        lr=0.1,
        seconds=1.5,
        train_images_per_second=1000.0,
    )


class Listener:
    def __init__(self):
        self.heard = []

    def trial_started(self, trial):
        self.heard.append(("started", trial.number))

    def epoch_reported(self, trial, report):
        self.heard.append(("epoch", trial.number, report.epoch))

    def trial_ended(self, trial):
        self.heard.append(("ended", trial.number, trial.state, trial.reason))


@pytest.fixture
def storage(tmp_path):
    return str(tmp_path / "runs" / "optuna.journal")


def open_study(storage, *, name="s", optimizer="adamsrt", sampler="tpe", seed=0, protocol=PROTOCOL, observers=()):
    """A study that begins with the five published points of AdamSRT."""
    space = build_search_space(load_setting("resnet20-digits"), optimizer)
    return Study(
        name,
        storage=open_storage(storage),
        space=space,
        sampler=sampler,
        seed=seed,
        protocol=protocol,
        first_points=[(point, "published best") for point in space.first_points()],
        observers=observers,
    )


def optuna_trials(storage, name="s"):
    """Give the trials asked for so far; published points wait behind them."""
    trials = optuna.load_study(study_name=name, storage=open_storage(storage)).get_trials()
    return [trial for trial in trials if trial.state is not OptunaState.WAITING]


def test_a_complete_trial_has_the_value_at_the_full_budget(storage):
    study = open_study(storage)
    trial = study.ask()
    for epoch, value in enumerate((0.2, 0.9, 0.8), start=1):
        study.report(trial.number, report(epoch, value))
    study.tell_complete(trial.number)
    [told] = optuna_trials(storage)
    assert told.state is OptunaState.COMPLETE
    assert told.value == 0.8
    assert told.intermediate_values == {1: 0.2, 2: 0.9, 3: 0.8}


def test_a_stopped_trial_is_pruned_with_all_its_epochs_and_is_never_the_best(storage):
    study = open_study(storage)
    stopped, complete = study.ask(), study.ask()
    for epoch in (1, 2):
        study.report(stopped.number, report(epoch, 0.99))
    study.tell_stopped(stopped.number, "rung 1")
    for epoch in (1, 2, 3):
        study.report(complete.number, report(epoch, 0.5))
    study.tell_complete(complete.number)
    told = optuna_trials(storage)[stopped.number]
    assert told.state is OptunaState.PRUNED
    assert told.intermediate_values == {1: 0.99, 2: 0.99}
    assert study.best is complete


def test_a_diverged_trial_fails_and_leaves_no_nan_behind(storage):
    study = open_study(storage)
    trial = study.ask()
    study.report(trial.number, report(1, 0.4))
    study.report(trial.number, report(2, 0.4, train_loss=math.nan))
    study.tell_failed(trial.number, "diverged: train_loss is nan at epoch 2")
    [told] = optuna_trials(storage)
    assert told.state is OptunaState.FAIL
    assert told.intermediate_values == {1: 0.4}
    assert study.trials[trial.number].reason == "diverged: train_loss is nan at epoch 2"
    assert study.epochs_spent == 2, "the epoch that diverged was paid for"


def test_the_end_is_told_once_and_late_reports_are_ignored(storage):
    listener = Listener()
    study = open_study(storage, observers=[listener])
    trial = study.ask()
    study.report(trial.number, report(1, 0.4))
    study.tell_stopped(trial.number, "rung 1")
    study.report(trial.number, report(2, 0.5))
    study.tell_failed(trial.number, "too late")
    assert listener.heard == [("started", 0), ("epoch", 0, 1), ("ended", 0, TrialState.STOPPED, "rung 1")]
    assert trial.epoch == 1


def test_epochs_trained_again_are_counted_and_not_told_twice(storage):
    study = open_study(storage)
    trial = study.ask()
    for epoch in (1, 2, 1, 2, 3):  # lost after epoch 2, begun anew
        study.report(trial.number, report(epoch, 0.1 * epoch))
    study.tell_complete(trial.number)
    assert [r.epoch for r in trial.epochs] == [1, 2, 3]
    assert (trial.epochs_repeated, study.epochs_spent) == (2, 5)
    assert optuna_trials(storage)[0].intermediate_values == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})


def test_records_are_rebuilt_from_the_storage(storage):
    study = open_study(storage)
    first, second = study.ask(), study.ask()
    study.report(first.number, report(1, 0.5), host="node-1")
    study.tell_stopped(first.number, "rung 1")
    for epoch in (1, 2, 3):
        study.report(second.number, report(epoch, 0.1 * epoch))
    study.tell_complete(second.number)

    again = open_study(storage)
    assert again.trials == study.trials
    assert again.trials[0].hyper_parameters["betas"] == first.hyper_parameters["betas"]
    assert again.trials[0].origin == "published best"
    assert again.best == second


def test_ties_go_to_the_lower_validation_loss_then_to_the_earlier_trial(storage):
    study = open_study(storage)
    losses = (0.3, 0.2, 0.2)
    for loss in losses:
        trial = study.ask()
        for epoch in (1, 2, 3):
            at_epoch = report(epoch, 0.9)
            study.report(trial.number, EpochReport(**{**vars(at_epoch), "valid_loss": loss}))
        study.tell_complete(trial.number)
    assert study.best is study.trials[1]


def test_no_best_before_a_candidate(storage):
    study = open_study(storage)
    study.ask()
    assert study.best is None


def test_a_study_for_another_search_is_refused_with_the_difference(storage):
    open_study(storage)
    with pytest.raises(StudyError, match=r"protocol\.epochs: 3 there, 4 now"):
        open_study(storage, protocol=PROTOCOL | {"epochs": 4})
    with pytest.raises(StudyError, match=r"space\.optimizer: adamsrt there, sgd now"):
        open_study(storage, optimizer="sgd")


def test_a_damaged_journal_is_named_and_left_as_it_is(tmp_path):
    path = tmp_path / "optuna.journal"
    path.write_text('{"op_code": 0, "worker_id": "x", "study_na\n{"broken\n')
    before = path.read_bytes()
    with pytest.raises(StudyError, match=r"optuna\.journal"):
        open_study(str(path))
    assert path.read_bytes() == before


def test_a_database_serves_as_well(tmp_path):
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    trial = study.ask()
    for epoch in (1, 2, 3):
        study.report(trial.number, report(epoch, 0.1 * epoch))
    study.tell_complete(trial.number)
    assert open_study(f"sqlite:///{tmp_path}/study.db").best == trial


def test_trial_seeds_differ_and_depend_on_the_search_seed():
    seeds = {trial_seed(search, number) for search in range(10) for number in range(1000)}
    assert len(seeds) > 9_990  # 10,000 draws of 31 bits collide 0.02 times on average
    assert trial_seed(3, 7) == trial_seed(3, 7)
    assert all(0 <= seed < 2**31 for seed in seeds)


class TestAfterACrash:
    """What a new driver finds where the last one was killed."""

    def test_a_running_trial_goes_on_under_its_number(self, storage):
        study = open_study(storage)
        trial = study.ask()
        study.report(trial.number, report(1, 0.5))
        study.note_checkpoint(trial.number, "/shared/trial-00000/checkpoint_000001")

        again = open_study(storage)
        assert again.is_resumed and not study.is_resumed
        assert again.key == study.key
        continued = again.ask()
        assert (continued.number, continued.seed) == (trial.number, trial.seed)
        assert continued.hyper_parameters == trial.hyper_parameters
        assert continued.checkpoint == "/shared/trial-00000/checkpoint_000001"
        for epoch in (1, 2, 3):
            again.report(continued.number, report(epoch, 0.5))
        again.tell_complete(continued.number)
        [told] = optuna_trials(storage)
        assert told.state is OptunaState.COMPLETE
        assert again.epochs_spent == 4, "epoch 1 was trained twice"
        assert open_study(storage).epochs_spent == 4

    def test_killed_while_asking_leaves_nothing_running_and_loses_no_first_point(self, storage, monkeypatch):
        study = open_study(storage)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Study, "_note", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            study.ask()
        again = open_study(storage)
        assert not again.trials and not again.interrupted, "it never ran and does not count"
        again.give_back_not_sampled()  # as at the end of a search with no room for it
        assert [t.state for t in optuna_trials(storage)] == [OptunaState.FAIL]
        points = [again.ask().hyper_parameters for _ in again._space.first_points()]
        assert sorted(map(str, points)) == sorted(map(str, again._space.first_points()))

    @pytest.mark.parametrize("end", ["complete", "stopped", "failed"])
    def test_killed_between_the_last_words_and_tell(self, storage, monkeypatch, end):
        study = open_study(storage)
        trial = study.ask()
        for epoch in (1, 2, 3) if end == "complete" else (1,):
            study.report(trial.number, report(epoch, 0.5))
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(study._optuna, "tell", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
            if end == "complete":
                study.tell_complete(trial.number)
            elif end == "stopped":
                study.tell_stopped(trial.number, "rung 1")
            else:
                study.tell_failed(trial.number, "diverged")
        again = open_study(storage)
        assert not again.interrupted
        assert again.trials[trial.number].state == end
        assert again.trials[trial.number].reason == {"complete": "", "stopped": "rung 1", "failed": "diverged"}[end]
        states = {"complete": OptunaState.COMPLETE, "stopped": OptunaState.PRUNED, "failed": OptunaState.FAIL}
        assert optuna_trials(storage)[trial.number].state is states[end]

    def test_killed_after_the_last_epoch(self, storage):
        study = open_study(storage)
        trial = study.ask()
        for epoch in (1, 2, 3):
            study.report(trial.number, report(epoch, 0.1 * epoch))
        again = open_study(storage)
        assert not again.interrupted
        assert again.best is not None and again.best.value == pytest.approx(0.3)

    def test_a_random_sampler_does_not_draw_its_first_points_again(self, storage):
        points = []
        for _ in range(3):
            study = open_study(storage, sampler="random")
            study.interrupted.clear()
            points += [study.ask().hyper_parameters["lr"] for _ in range(6)]
        sampled = points[5:]  # the first five are published
        assert len(set(sampled)) == len(sampled)


def test_every_report_has_the_time_at_which_it_came(storage, monkeypatch):
    study = open_study(storage)
    trial = study.ask()
    monkeypatch.setattr("time.time", lambda: 1234.5)
    study.report(trial.number, report(1, 0.5))
    assert trial.epochs[0].reported_at == 1234.5
    assert open_study(storage).trials[0].epochs[0].reported_at == 1234.5


class TestAListedStudy:
    """A confirmation: a list of configurations, each on a seed of its own, and nothing else."""

    RUNS = tuple((number, seed) for seed in (2**31 + 5, 2**31 + 6) for number in (3, 4))

    def open(self, storage, runs=RUNS):
        search = open_study(storage)
        points = search._space.first_points()
        listed = [ListedRun(points[number], seed, f"trial {number}", number) for number, seed in runs]
        study = Study(
            "s.2-seeds.confirm",
            storage=open_storage(storage),
            space=search._space,
            sampler="random",
            seed=0,
            protocol=PROTOCOL,
            listed=listed,
            confirms=search,
        )
        return study, points

    def test_gives_the_list_in_order_with_its_seeds(self, storage):
        study, points = self.open(storage)
        asked = [study.ask() for _ in self.RUNS]
        assert [(trial.confirms, trial.seed) for trial in asked] == list(self.RUNS) == study.listed
        assert [trial.hyper_parameters for trial in asked] == [points[number] for number, _ in self.RUNS]
        assert [trial.origin for trial in asked[:2]] == ["trial 3", "trial 4"]

    def test_goes_on_after_a_restart_without_listing_anything_twice(self, storage):
        study, _ = self.open(storage, self.RUNS[:3])  # killed while it was listed
        study.report(study.ask().number, report(1, 0.5))
        again, _ = self.open(storage)
        assert again.listed == list(self.RUNS)
        asked = [again.ask() for _ in self.RUNS]
        assert [(trial.confirms, trial.seed) for trial in asked] == list(self.RUNS)
        assert len(optuna_trials(storage, "s.2-seeds.confirm")) == 4

    def test_killed_while_asking_keeps_candidate_and_seed(self, storage, monkeypatch):
        study, _ = self.open(storage)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Study, "_note", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            study.ask()
        again, _ = self.open(storage)
        asked = [again.ask() for _ in self.RUNS]
        assert sorted((trial.confirms, trial.seed) for trial in asked) == sorted(self.RUNS)

    def test_keeps_what_the_test_set_said(self, storage):
        study, _ = self.open(storage)
        study.note_test(3, [0.5, 0.25])
        study.note_test(4, [1.0])
        assert self.open(storage)[0].test_accuracies == {3: [0.5, 0.25], 4: [1.0]}

    def test_is_found_with_the_search_by_its_key(self, storage):
        study, _ = self.open(storage)
        assert study.key == f"{open_study(storage).key}/2-seeds.confirm"

    def test_is_no_search(self, storage):
        self.open(storage)
        with pytest.raises(StudyError, match="was made for another search"):
            open_study(storage, name="s.2-seeds.confirm")


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "qmc", "random"])
def test_every_sampler_gives_points_of_the_space_and_repeats_them_with_its_seed(sampler, tmp_path):
    def points(name, seed):
        study = open_study(str(tmp_path / f"{name}.journal"), sampler=sampler, seed=seed)
        found = []
        for number in range(14):  # past the start-up trials of tpe and gp
            trial = study.ask()
            study.report(trial.number, report(1, 0.1))
            study.report(trial.number, report(2, 0.2))
            study.report(trial.number, report(3, 0.5 + 0.01 * (number % 5)))
            study.tell_complete(trial.number)
            found.append(trial.hyper_parameters)
        return found

    first = points("a", 0)
    assert first == points("b", 0)
    assert first != points("c", 1)
    for point in first:
        assert 1e-4 <= point["lr"] <= 3e-2
        assert point["weight_decay"] == 0 or 1e-6 <= point["weight_decay"] <= 5e-3


@pytest.fixture
def writes(monkeypatch):
    """How often something was made to reach the disk."""
    counted = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (counted.append(file), fsync(file)))
    return counted


def test_what_belongs_together_is_one_write(storage, writes):
    study = open_study(storage)
    for what, act, at_most in (
        ("ask for a published point", lambda: study.ask(), 2),  # one to take it, one for all the rest
        ("report", lambda: study.report(0, report(1, 0.5)), 1),
        ("tell", lambda: study.tell_stopped(0, "rung 1"), 1),
        *[(f"ask for published point {i}", lambda: study.ask(), 2) for i in range(1, 5)],
        ("ask the sampler", lambda: study.ask(), 2),
    ):
        writes.clear()
        act()
        assert 0 < len(writes) <= at_most, what
    assert open_study(storage).trials == study.trials
    assert [trial.state for trial in optuna_trials(storage)] == [OptunaState.PRUNED, *[OptunaState.RUNNING] * 5]


def test_what_was_told_before_an_error_is_on_record(tmp_path):
    journal = Journal(str(tmp_path / "journal"))
    study = optuna.create_study(study_name="s", storage=journal)
    with pytest.raises(ZeroDivisionError), journal.together():
        trial = study.ask()  # its number must be known here
        journal.set_trial_user_attr(trial._trial_id, "a", 1)
        journal.set_trial_user_attr(trial._trial_id, "b", 1 / 0)
    journal.set_trial_user_attr(trial._trial_id, "c", 3)
    [again] = optuna.load_study(study_name="s", storage=Journal(str(tmp_path / "journal"))).trials
    assert (again.number, again.user_attrs) == (0, {"a": 1, "c": 3})


@pytest.mark.parametrize("asked_before", [0, 5], ids=["a published point", "the sampler's"])
def test_a_driver_killed_while_it_asks_leaves_a_trial_that_the_next_one_samples(storage, asked_before):
    """Optuna gives a trial its number first and its values later; a driver may be killed in between."""
    study = open_study(storage)
    for _ in range(asked_before):
        study.ask()
    undisturbed = open_study(storage.replace("optuna", "undisturbed"))
    expected = [undisturbed.ask().hyper_parameters for _ in range(asked_before + 1)]
    optuna.load_study(study_name="s", storage=open_storage(storage)).ask()

    resumed = open_study(storage)
    assert [record.number for record in resumed.interrupted] == list(range(asked_before))
    resumed.interrupted.clear()
    record = resumed.ask()
    assert record.number == asked_before
    if not asked_before:  # a sampler goes on with other random numbers
        assert record.hyper_parameters == expected[-1]
    assert len(optuna_trials(storage)) == asked_before + 1
    assert resumed.ask().number == asked_before + 1
    assert open_study(storage).trials == resumed.trials

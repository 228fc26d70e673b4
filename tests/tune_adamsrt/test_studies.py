"""What a storage holds, and starting from an earlier study."""

import pytest
from search_records import make_info

from tune_adamsrt.records import EpochReport
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import StorageLostError, StudyError, open_storage
from tune_adamsrt.studies import (
    confirmations_of,
    describe_studies,
    load_confirmation,
    load_search,
    newest_study_name,
    top_points,
)
from tune_adamsrt.study import ListedRun, Study


def report(epoch, value):
    return EpochReport(
        epoch=epoch,
        value=value,
        train_loss=1.0,
        train_accuracy=value,
        valid_loss=1.0,
        valid_accuracy=value,
        lr=0.1,
        seconds=1.0,
        train_images_per_second=1.0,
    )


def open_study(storage, name, *, first_points=()):
    space = build_search_space(load_setting("resnet20-digits"), "adamsrt")
    return Study(
        name, storage=storage, space=space, sampler="random", seed=0, protocol={"epochs": 2}, first_points=first_points
    )


@pytest.fixture
def storage(tmp_path):
    """One study with a stopped trial that once stood high, three candidates, and a failure."""
    storage = open_storage(str(tmp_path / "optuna.journal"))
    study = open_study(storage, "earlier")
    for values in ((0.99,), (0.5, 0.6), (0.5, 0.8), (0.5, 0.7)):
        trial = study.ask()
        for epoch, value in enumerate(values, start=1):
            study.report(trial.number, report(epoch, value))
        if len(values) == 2:
            study.tell_complete(trial.number)
        else:
            study.tell_stopped(trial.number, "rung 1")
    study.tell_failed(study.ask().number, "diverged")
    return storage


def test_a_line_per_study(storage):
    open_study(storage, "new")
    assert list(describe_studies(storage)) == [
        "earlier  resnet20-digits/adamsrt  3 complete, 1 stopped, 1 failed  best 80.00 %",
        "new  resnet20-digits/adamsrt  no trials  no candidate",
    ]


def test_the_best_candidates_of_an_earlier_study_come_first(storage):
    earlier = open_study(storage, "earlier")
    best_first = [earlier.trials[number].hyper_parameters for number in (2, 3)]
    assert top_points(storage, "earlier", 2) == best_first
    study = open_study(storage, "new", first_points=[(point, "from earlier") for point in best_first])
    asked = [study.ask() for _ in range(3)]
    assert [trial.hyper_parameters for trial in asked[:2]] == best_first
    assert [trial.origin for trial in asked] == ["from earlier", "from earlier", "sampled by random"]


def test_first_points_are_enqueued_once(storage):
    point = open_study(storage, "earlier").trials[1].hyper_parameters
    for _ in range(2):
        study = open_study(storage, "new", first_points=[(point, "from earlier")])
    assert study.ask().origin == "from earlier"
    assert study.ask().origin == "sampled by random"


def test_the_newest_study_of_a_search_is_resumed(storage):
    for name in ("a-20260101-000000", "a-20260102-000000", "b-20270101-000000"):
        open_study(storage, name)
    assert newest_study_name(storage, prefix="a-") == "a-20260102-000000"
    with pytest.raises(StudyError, match=r"--resume needs an earlier study c-\*"):
        newest_study_name(storage, prefix="c-")


def test_unknown_and_empty_studies_are_refused(storage):
    open_study(storage, "empty")
    with pytest.raises(StudyError, match="unknown study 'earlyer'; did you mean 'earlier'"):
        top_points(storage, "earlyer", 3)
    with pytest.raises(StudyError, match="needs a study with candidates, got 'empty'"):
        top_points(storage, "empty", 3)


def test_a_storage_that_must_exist_is_not_made(tmp_path):
    with pytest.raises(StudyError, match="must exist"):
        open_storage(str(tmp_path / "no" / "optuna.journal"), must_exist=True)
    assert not (tmp_path / "no").exists()


def test_an_unreachable_database_is_one_line_without_its_password(tmp_path):
    with pytest.raises(StudyError) as caught:
        open_storage(f"sqlite:///{tmp_path}/no/such/folder/study.db")
    assert "must answer" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(StudyError) as caught:
        open_storage("postgresql://me:hunter2@127.0.0.1:1/studies")
    assert "hunter2" not in str(caught.value)


def test_a_storage_lost_while_running_ends_the_search(storage, monkeypatch):
    study = open_study(storage, "new")
    trial = study.ask()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "set_trial_user_attr", full)
    with pytest.raises(StorageLostError, match="No space left"):
        study.report(trial.number, report(1, 0.5))
    assert not issubclass(StorageLostError, Exception), "Tune catches exceptions of searchers and goes on"


class TestLoadingASearch:
    def test_gives_what_it_said_of_itself_when_it_started_and_ended(self, storage, monkeypatch):
        study = open_study(storage, "earlier")
        info = make_info(study_name="earlier", trials=7, time_budget_s=60.0, tags={"host": "a"}, space={"x": 1})
        monkeypatch.setattr("time.time", lambda: 100.0)
        study.note_start(info)
        running = load_search(storage, "earlier")
        assert (running.started_at, running.ended_at, running.ended_by) == (100.0, None, None)
        monkeypatch.setattr("time.time", lambda: 160.0)
        study.note_end(info, "time budget")
        ended = load_search(storage, "earlier")
        assert (ended.started_at, ended.ended_at, ended.ended_by) == (100.0, 160.0, "time budget")
        assert (ended.info.trials, ended.info.time_budget_s, ended.info.tags) == (7, 60.0, {"host": "a"})
        assert (ended.info.space, ended.info.key) == ({"x": 1}, study.key)
        assert ended.trials == list(study.trials.values())
        assert (ended.sampler, ended.seed, ended.protocol, ended.confirms) == ("random", 0, {"epochs": 2}, None)
        study.note_start(info)
        assert load_search(storage, "earlier").ended_by is None, "it runs again"

    def test_makes_do_with_a_study_that_has_not_described_its_search(self, storage):
        bare = load_search(storage, "earlier")
        assert (bare.info.name, bare.info.study_name) == ("resnet20-digits/adamsrt", "earlier")
        assert (bare.info.trials, bare.info.epochs, bare.info.role) == (5, 2, "search")
        assert (bare.started_at, bare.ended_by, len(bare.trials)) == (None, None, 5)

    def test_refuses_a_study_of_somebody_else(self, storage):
        import optuna

        optuna.create_study(study_name="theirs", storage=storage)
        with pytest.raises(StudyError, match="must be one of tune_adamsrt"):
            load_search(storage, "theirs")
        with pytest.raises(StudyError, match="unknown study 'theris'; did you mean 'theirs'"):
            load_search(storage, "theris")


class TestConfirmations:
    @pytest.fixture
    def confirmed(self, storage):
        """Trial 2 of `earlier` on two seeds; the test set has been read."""
        search = open_study(storage, "earlier")
        point = search.trials[2].hyper_parameters
        study = Study(
            "earlier.2-seeds.confirm",
            storage=storage,
            space=search._space,
            sampler="random",
            seed=0,
            protocol={"epochs": 2},
            listed=[ListedRun(point, seed, f"trial 2, seed {seed} of 2", 2) for seed in (1, 2)],
            confirms=search,
        )
        for values in ((0.5, 0.75), (0.5, 0.25)):
            trial = study.ask()
            for epoch, value in enumerate(values, start=1):
                study.report(trial.number, report(epoch, value))
            study.tell_complete(trial.number)
        return study

    def test_are_read_with_their_search(self, storage, confirmed):
        assert load_confirmation(storage, "earlier") is None, "not before the test"
        confirmed.note_test(2, [0.5, 0.6])
        found = load_confirmation(storage, "earlier")
        assert found.candidate.number == 2 and found.candidate.value == 0.8
        assert (found.valid_accuracy.mean, found.valid_accuracy.n) == (0.5, 2)
        assert found.test_accuracies == (0.5, 0.6)
        [stored] = confirmations_of(storage, "earlier")
        assert (stored.confirms, stored.test_accuracies) == ("earlier", {2: [0.5, 0.6]})
        assert [trial.confirms for trial in stored.trials] == [2, 2]
        assert load_confirmation(storage, "earlier.2-seeds.confirm") is None

    def test_are_not_what_is_resumed(self, storage, confirmed):
        assert newest_study_name(storage, prefix="earlier") == "earlier"

    def test_are_listed_as_such(self, storage, confirmed):
        confirmed.note_test(2, [0.5, 0.6])
        assert list(describe_studies(storage))[1] == (
            "earlier.2-seeds.confirm  resnet20-digits/adamsrt  2 complete  confirms earlier: tested trial 2"
        )

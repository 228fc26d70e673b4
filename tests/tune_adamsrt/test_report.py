"""The command that writes a report: which studies it takes, what it writes, and what it says when it cannot."""

import queue
import threading

import pyarrow.parquet as pq
import pytest
from search_records import make_info
from stored_searches import make_epochs

from tune_adamsrt.report import choose_studies, main, parse_arguments, write_report
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import open_storage
from tune_adamsrt.studies import load_search
from tune_adamsrt.study import ListedRun, Study


def open_study(storage, name, *, optimizer="adamsrt", setting="resnet20-digits", **changes):
    space = build_search_space(load_setting(setting), optimizer)
    protocol = {"model": "resnet20", "dataset": "digits", "epochs": 4}
    return Study(name, storage=storage, space=space, sampler="random", seed=0, protocol=protocol, **changes)


def run_trials(study, *curves):
    for values in curves:
        trial = study.ask()
        for report in make_epochs(values):
            study.report(trial.number, report)
        study.tell_complete(trial.number) if len(values) == 4 else study.tell_stopped(trial.number, "rung 1 (epoch 2)")


@pytest.fixture
def output(tmp_path):
    """Two searches by adamsrt, the newer one first by name; one by adam; one on another setting; one without trials."""
    folder = tmp_path / "runs"
    storage = open_storage(str(folder / "optuna.journal"))
    older, newer = open_study(storage, "b-older"), open_study(storage, "a-newer")
    for study in (older, newer):
        run_trials(study, [0.5, 0.6, 0.7, 0.8], [0.3, 0.4])
        study.note_start(make_info(study_name=study.name, epochs=4, space=study._space.to_json()))
    run_trials(open_study(storage, "adam", optimizer="adam"), [0.5, 0.6, 0.7, 0.75])
    run_trials(open_study(storage, "cifar", setting="resnet20-cifar10"), [0.5, 0.6])
    open_study(storage, "empty", optimizer="sgd", setting="resnet18-svhn")
    return folder


def studies_in(folder):
    return sorted(set(pq.read_table(folder / "trials.parquet").column("study").to_pylist()))


def test_several_searches_share_a_page_and_a_figure(output, tmp_path):
    assert main(["--setting", "resnet20-digits", "--output", str(output), "--out", str(tmp_path)]) == 0
    assert studies_in(tmp_path) == ["a-newer", "adam"]
    assert (tmp_path / "figures" / "resnet20-digits-best-so-far.svg").exists()
    page = (tmp_path / "index.html").read_text()
    assert "<h2>resnet20-digits/adam</h2>" in page and "<h2>resnet20-digits/adamsrt</h2>" in page


def test_it_writes_a_page_figures_and_tables_and_says_where(output, tmp_path, capsys):
    out = tmp_path / "report"
    assert main(["--study", "a-newer", "--output", str(output), "--out", str(out)]) == 0
    drawn = ["best-so-far", "ends-per-rung", "learning-curves", "parallel-coordinates", "response-map"]
    figures = [f"{name}{suffix}" for name in drawn for suffix in (".png", ".svg")]
    assert sorted(path.name for path in (out / "figures").iterdir()) == figures
    assert sorted(path.name for path in out.iterdir()) == ["epochs.parquet", "figures", "index.html", "trials.parquet"]
    page = (out / "index.html").read_text()
    for name in figures:
        assert f'href="figures/{name}"' in page
    assert page.rstrip().endswith("</html>") and studies_in(out) == ["a-newer"]
    said = capsys.readouterr()
    assert said.err == "" and [line.split()[0] for line in said.out.splitlines()] == ["report", "figures", "tables"]
    assert str(out / "index.html") in said.out


def test_figures_may_stay_in_the_page_alone(output, tmp_path, capsys):
    assert main(["--study", "a-newer", "--output", str(output), "--out", str(tmp_path), "--no-figures"]) == 0
    assert not (tmp_path / "figures").exists() and "\nfigures" not in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure>") >= 5 and 'href="figures/' not in page


@pytest.mark.parametrize(
    ("options", "studies"),
    [
        ([], ["a-newer", "adam", "cifar", "empty"]),
        (["--setting", "resnet20-digits"], ["a-newer", "adam"]),
        (["--setting", "resnet20-cifar10", "--setting", "resnet18-svhn"], ["cifar", "empty"]),
        (["--study", "b-older", "--study", "a-newer", "--study", "b-older"], ["a-newer", "b-older"]),
    ],
)
def test_the_newest_study_of_each_search_unless_they_are_named(output, options, studies):
    storage = open_storage(str(output / "optuna.journal"))
    assert sorted(choose_studies(storage, parse_arguments(options))) == studies


def test_confirmations_come_along(output, tmp_path):
    storage = open_storage(str(output / "optuna.journal"))
    search = open_study(storage, "b-older")
    point = search.trials[0].hyper_parameters
    runs = [ListedRun(point, seed=2**31 + seed, origin="trial 0", confirms=0) for seed in range(2)]
    confirmation = open_study(storage, "b-older.2-seeds.confirm", listed=runs, confirms=search)
    run_trials(confirmation, [0.5, 0.6, 0.7, 0.7], [0.5, 0.6, 0.7, 0.8])
    confirmation.note_test(0, [0.72, 0.74])
    out = tmp_path / "report"
    assert main(["--study", "b-older", "--output", str(output), "--out", str(out)]) == 0
    table = pq.read_table(out / "trials.parquet").to_pylist()
    assert [(row["role"], row["confirms"], row["test_accuracy"]) for row in table] == [
        *[("search", None, None)] * 2,
        ("confirmation", 0, 0.72),
        ("confirmation", 0, 0.74),
    ]
    assert "73.00 % ± 1.41" in (out / "index.html").read_text()
    assert confirmation.name not in choose_studies(storage, parse_arguments([])), "it is no search of its own"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--study", "a-never"], "unknown study 'a-never'; did you mean 'a-newer'"),
        (["--setting", "resnet20-digit"], "unknown setting with studies 'resnet20-digit'; did you mean"),
        (["--study", "empty"], "a report needs at least one trial, empty has none yet"),
        (["--output", "/no/such/folder"], "the study storage must exist"),
        (["--study", "a-newer", "--setting", "resnet20-digits"], "not allowed with argument"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(output, tmp_path, capsys, options, message):
    try:
        code = main(["--output", str(output), "--out", str(tmp_path / "report"), *options])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert code == 2 and message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "report").exists()


def test_a_storage_without_studies_and_a_folder_that_cannot_be_written(output, tmp_path, capsys):
    open_storage(str(tmp_path / "new" / "optuna.journal"))
    (tmp_path / "new" / "optuna.journal").touch()
    assert main(["--output", str(tmp_path / "new"), "--out", str(tmp_path / "report")]) == 2
    assert "this storage has none" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main(["--study", "adam", "--output", str(output), "--out", str(tmp_path / "file")]) == 2
    assert "must be writable" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_search_is_reported_on_while_it_runs(output, tmp_path):
    """Its journal is read from another process' point of view while epochs are appended."""
    writing = open_study(open_storage(str(output / "optuna.journal")), "running")
    told, ended = queue.Queue(), threading.Event()

    def search():
        while not ended.is_set():
            run_trials(writing, [0.5, 0.6])
            told.put("a trial of two epochs")

    thread = threading.Thread(target=search)
    thread.start()
    try:
        counts = []
        for _ in range(2):
            for _ in range(told.qsize() + 1):
                told.get(timeout=120)
            write_report(tmp_path, [load_search(open_storage(str(output / "optuna.journal")), "running")])
            counts.append(pq.read_table(tmp_path / "epochs.parquet").num_rows)
    finally:
        ended.set()
        thread.join()
    assert 2 <= counts[0] < counts[1]

"""The example script: a whole run as a user starts it, and the one-line refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import training_example
from adamsrt.dataloaders import DATASETS

ROOT = Path(__file__).parents[1]
BEST = """
BEST_HYPER_PARAMETERS = {
    "digits": {"resnet20": {"adamsrt": {"lr": 0.003, "betas": (0.9, 0.99), "weight_decay": 0.0}}},
    "cifar10": {"vgg16": {"sgd": {"lr": 0.1}, "adam": {"lr": 0.001}}, "resnet18": {"adamsrt": {"lr": 0.001}}},
}
"""


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script beside a best_hyper_parameters.py of our own."""
    (folder / "best_hyper_parameters.py").write_text(BEST)
    shutil.copy(ROOT / "training_example.py", folder)
    return subprocess.run(
        [sys.executable, "training_example.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def refusal(monkeypatch, capsys, *arguments: str) -> str:
    """Run main() with our own entries; give the one line it ends with."""
    values: dict[str, dict] = {}
    exec(BEST, values)
    monkeypatch.setattr(training_example, "BEST_HYPER_PARAMETERS", values["BEST_HYPER_PARAMETERS"])
    with pytest.raises(SystemExit) as exit_:
        training_example.main(arguments)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1, "a mistake is one line"
    return captured.err


def test_a_whole_run_on_the_digits(tmp_path):
    done = run_script(
        tmp_path, "--dataloader=digits", "--model=resnet20", "--optimizer=adamsrt", "--epochs=2", "--seed=3",
        "--limit-train-examples=200",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "resnet20 on digits with adamsrt (lr=0.003, betas=(0.9, 0.99), weight_decay=0.0): "
        f"2 epochs, batches of {training_example.PROTOCOLS['digits'].batch_size}, seed 3, on cpu"
    )
    assert [line.split()[1] for line in lines[1:3]] == ["1/2", "2/2"]
    assert all("train loss" in line and "valid loss" in line for line in lines[1:3])
    assert lines[3].startswith("test accuracy ")
    assert len(lines) == 4, "one plain line per epoch where the output is no terminal"


def test_a_refusal_ends_the_script_with_one_line_and_code_2(tmp_path):
    done = run_script(tmp_path, "--dataloader=cifar10", "--model=vgg16", "--optimizer=adamsrt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "training_example.py: error: no hyper-parameters for adamsrt with vgg16 on cifar10; "
        "the optimizers for vgg16 on cifar10 are sgd, adam\n"
    )


def test_a_model_without_any_entry_is_refused_with_those_that_have_one(monkeypatch, capsys):
    line = refusal(monkeypatch, capsys, "--dataloader=cifar10", "--model=resnet20")
    assert (
        "no hyper-parameters for adamsrt with resnet20 on cifar10; the models for cifar10 are resnet18, vgg16" in line
    )


def test_digits_without_an_entry_say_which_search_to_run(monkeypatch, capsys):
    line = refusal(monkeypatch, capsys, "--dataloader=digits", "--model=resnet20", "--optimizer=sgdmrt")
    assert "run `python -m tune_adamsrt.search --setting resnet20-digits --optimizer sgdmrt` first" in line


def test_a_model_that_does_not_go_with_the_digits_sends_nobody_to_a_search(monkeypatch, capsys):
    line = refusal(monkeypatch, capsys, "--dataloader=digits", "--model=vgg16")
    assert "the models for digits are resnet20" in line and "search" not in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet19"], "invalid choice: 'resnet19'"),
        (["--dataloader=digits", "--model=resnet20", "--epochs=0"], "epochs must be >= 1, got 0"),
        (["--dataloader=digits", "--model=resnet20", "--epochs=many"], "invalid int value: 'many'"),
        (["--dataloader=digits", "--model=resnet20", "--device=abacus"], "got 'abacus'; here there are cpu"),
        (["--dataloader=digits", "--model=resnet20", "--limit-train-examples=0"], "limit_train_examples"),
        (["--dataloader=digits", "--model=resnet20", "--batch-size=0"], "batch_size must be >= 1, got 0"),
        (["--dataloader=digits", "--model=resnet20", "--valid-split=1"], "valid_split must be in (0, 1), got 1.0"),
        (["--dataloader=digits", "--model=resnet20", "--threads=0"], "--threads must be >= 1, got 0"),
        (["--dataloader=digits", "--model=resnet20", "--precision=fp16"], "invalid choice: 'fp16'"),
        (["--dataloader=digits", "--model=resnet20", "--json=no/such/file"], "--json must be a file that can be"),
        (["--hyper-parameters=no/such/file"], "has exported, got no/such/file (No such file or directory)"),
        (["--hyper-parameters=pyproject.toml"], "has exported, got pyproject.toml (SyntaxError"),
        (["--hyper-parameters=training_example.py"], "has exported, got training_example.py (KeyError"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    assert message in refusal(monkeypatch, capsys, *arguments)


def test_another_file_of_hyper_parameters_is_read_and_never_executed(monkeypatch, tmp_path):
    file = tmp_path / "others.py"
    file.write_text(
        'import nothing_like_it\n\nBEST_HYPER_PARAMETERS = {"digits": {"resnet20": {"sgd": {"lr": 0.5}}}}\n'
    )
    specs = []
    monkeypatch.setattr(training_example, "train", lambda training, *others: specs.append(training.spec) or 0)
    options = ["--dataloader=digits", "--model=resnet20", "--optimizer=sgd", "--device=cpu"]
    assert training_example.main([*options, f"--hyper-parameters={file}"]) == 0
    assert specs[0].hyper_parameters == {"lr": 0.5}


def test_missing_data_is_one_line(monkeypatch, capsys, tmp_path):
    def no_data(**options):
        raise ValueError("cifar10 was not found")

    entry = DATASETS["cifar10"]
    without_data = type(entry)(**{**vars(entry), "get_dataloaders": no_data})
    monkeypatch.setattr("adamsrt.training.DATASETS", {"cifar10": without_data})
    line = refusal(monkeypatch, capsys, "--dataloader=cifar10", "--device=cpu", f"--data-root={tmp_path}")
    assert line.endswith("error: cifar10 was not found\n")


def test_an_interrupt_ends_with_130_and_no_traceback(monkeypatch, capsys):
    def interrupted(training, console, records):
        raise KeyboardInterrupt

    values: dict[str, dict] = {}
    exec(BEST, values)
    monkeypatch.setattr(training_example, "BEST_HYPER_PARAMETERS", values["BEST_HYPER_PARAMETERS"])
    monkeypatch.setattr(training_example, "train", interrupted)
    assert training_example.main(["--dataloader=digits", "--model=resnet20", "--device=cpu"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_while_it_still_imports_leaves_no_traceback(tmp_path):
    """torch takes seconds to import; here it takes as long as it is left alone."""
    (tmp_path / "torch.py").write_text("import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n")
    shutil.copy(ROOT / "training_example.py", tmp_path)
    script = subprocess.Popen(
        [sys.executable, "training_example.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (tmp_path / "importing").exists():
        assert script.poll() is None
        time.sleep(0.01)
    script.send_signal(signal.SIGINT)
    assert script.communicate(timeout=30)[0] == b""
    assert script.returncode == 130


def test_what_decides_the_numbers_can_be_set(monkeypatch, tmp_path):
    """All that a confirmed run's comment names reaches the training, and the numbers are written with all digits."""
    values: dict[str, dict] = {}
    exec(BEST, values)
    monkeypatch.setattr(training_example, "BEST_HYPER_PARAMETERS", values["BEST_HYPER_PARAMETERS"])
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    specs = []
    train = training_example.train
    monkeypatch.setattr(
        training_example, "train", lambda training, *others: specs.append(training.spec) or train(training, *others)
    )
    file = tmp_path / "epochs.jsonl"
    options = (
        "--epochs=1 --batch-size=16 --valid-split=0.3 --split-seed=4 --seed=4000000000 --threads=3 --precision=bf16"
    )
    code = training_example.main(
        ["--dataloader=digits", "--model=resnet20", "--limit-train-examples=32", "--device=cpu", *options.split(),
         f"--json={file}"]
    )  # fmt: skip
    [spec] = specs
    assert (code, threads) == (0, [3])
    assert (spec.batch_size, spec.valid_split, spec.split_seed, spec.seed) == (16, 0.3, 4, 4_000_000_000)
    assert spec.precision == "bf16"
    epoch, test = map(json.loads, file.read_text().splitlines())
    assert {"epoch", "train_loss", "valid_accuracy", "lr"} <= epoch.keys() and epoch["epoch"] == 1
    assert test.keys() == {"test_loss", "test_accuracy", "epoch"}


def test_the_defaults_are_the_published_protocol():
    assert training_example.Protocol() == training_example.Protocol(epochs=405, batch_size=128, num_workers=0)
    assert training_example.PROTOCOLS["imagenet"].batch_size == 256


def test_the_digits_are_trained_as_they_were_tuned():
    folder = ROOT / "search_spaces"
    setting = yaml.safe_load((folder / "_defaults.yaml").read_text())
    setting |= yaml.safe_load((folder / "resnet20-digits.yaml").read_text())
    digits = training_example.PROTOCOLS["digits"]
    assert (digits.epochs, digits.batch_size) == (setting["epochs"], setting["batch_size"])

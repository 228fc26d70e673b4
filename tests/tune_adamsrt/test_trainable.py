"""The worker's side, without Ray: Tune calls these methods in a process of its own."""

import math

import optuna
import pytest
import torch
from ray.tune.result import DONE, SHOULD_CHECKPOINT
from tiny_data import write_tiny_datasets

from adamsrt import training as training_module
from adamsrt.optimizers import OPTIMIZERS
from tune_adamsrt.settings import known_settings, load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.trainable import TrainingTrainable, epoch_report, failure_of
from tune_adamsrt.weights import load_weights


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_tiny_datasets(root)
    return root


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def configuration(optimizer="adamsrt", *, setting="resnet20-digits", data_root="data", number=0, **protocol):
    loaded = load_setting(setting)
    space = build_search_space(loaded, optimizer)
    point = space.suggest(optuna.trial.FixedTrial(space.encode(space.first_points()[0])))
    return {
        "protocol": {
            "dataset": loaded.dataset,
            "model": loaded.model,
            "optimizer": optimizer,
            "epochs": 3,
            "batch_size": 128,
            "valid_split": loaded.valid_split,
            "split_seed": 0,
            "limit_train_examples": 128,
            "selection": "best",
        }
        | protocol,
        "place": {
            "data_root": str(data_root),
            "device": "cpu",
            "cpus_per_trial": 1,
            "num_workers": 0,
            "checkpoint_epochs": (),
        },
        "trial_number": number,
        "hyper_parameters": point,
        "seed": 7,
        "checkpoint": None,
    }


def started(config):
    """A trainable as Tune has it after its set-up, without the actor around it."""
    trainable = TrainingTrainable.__new__(TrainingTrainable)
    trainable.setup(config)
    return trainable


def values(result):
    """A result without what the clock decides."""
    clock = {"seconds", "train_images_per_second", SHOULD_CHECKPOINT}
    return {key: value for key, value in result.items() if key not in clock}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("setting", known_settings())
def test_every_setting_trains_an_epoch_with_every_optimizer(setting, optimizer, data_root):
    config = configuration(
        optimizer, setting=setting, data_root=data_root, epochs=1, batch_size=4, limit_train_examples=8
    )
    result = started(config).step()
    assert failure_of(result) is None
    assert result[DONE] is True
    report = epoch_report(result)
    assert report is not None and report.is_finite
    assert (report.epoch, report.lr) == (1, config["hyper_parameters"]["lr"])
    assert 0 <= report.valid_accuracy <= 1 and report.value == report.valid_accuracy


def test_a_reused_process_gives_the_numbers_of_a_fresh_one():
    first, second = configuration("adamsrt"), configuration("sgdmrt", number=1)
    reused = started(first)
    reused.step()
    assert reused.reset_config(second)
    fresh = started(second)
    for _ in range(3):
        assert values(reused.step()) == values(fresh.step())
    for ours, theirs in zip(reused._training.model.parameters(), fresh._training.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path):
    config = configuration()
    whole = started(config)
    results = [values(whole.step()) for _ in range(3)]
    cut = started(config)
    cut.step()
    cut.save_checkpoint(str(tmp_path))

    restored = started(config)  # by Tune, after a lost worker
    restored.load_checkpoint(str(tmp_path))
    assert [values(restored.step()) for _ in range(2)] == results[1:]
    resumed = started(config | {"checkpoint": str(tmp_path)})  # by us, after a lost driver
    assert [values(resumed.step()) for _ in range(2)] == results[1:]


class TestKeptWeights:
    """A confirm run leaves the weights that are to be tested, before its last epoch is reported."""

    @pytest.mark.parametrize("scheme", ["", "file://"])
    def test_are_those_of_the_best_validation_epoch(self, scheme, tmp_path, monkeypatch):
        accuracies = iter([0.1, 0.9, 0.4])
        config = configuration(number=5)
        config["place"]["keep_weights"] = f"{scheme}{tmp_path}/weights/study"
        trainable = started(config)
        evaluate = training_module.evaluate
        monkeypatch.setattr(
            "adamsrt.training.evaluate", lambda *args, **kwargs: (evaluate(*args, **kwargs)[0], next(accuracies))
        )
        file = tmp_path / "weights" / "study" / "trial-5.pt"
        best = {}
        for epoch in (1, 2, 3):
            assert not file.exists()
            trainable.step()
            if epoch == 2:
                best = {name: tensor.clone() for name, tensor in trainable._training.model.state_dict().items()}
        kept = load_weights(str(file))
        assert kept.keys() == best.keys()
        assert all(torch.equal(kept[name], best[name]) for name in best)

    def test_that_cannot_be_kept_fail_the_run(self, tmp_path):
        (tmp_path / "weights").write_text("in the way")
        config = configuration(epochs=1)
        config["place"]["keep_weights"] = str(tmp_path / "weights")
        assert "Error" in failure_of(started(config).step())

    def test_are_not_kept_by_a_search(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        trainable = started(configuration(epochs=1))
        assert trainable.step()[DONE] is True
        assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_gone_costs_epochs_and_not_the_trial(tmp_path):
    resumed = started(configuration() | {"checkpoint": str(tmp_path / "gone")})
    assert resumed.step()["epoch"] == 1


def test_checkpoints_follow_their_cost(monkeypatch):
    trainable = started(configuration(epochs=10))
    assert trainable.step()[SHOULD_CHECKPOINT] is False, "an epoch of milliseconds is cheaper to repeat"
    trainable._checkpointed_at -= 31
    assert trainable.step()[SHOULD_CHECKPOINT] is True
    trainable._checkpoint_cost_s = 60.0
    assert trainable.step()[SHOULD_CHECKPOINT] is False, "60 s a checkpoint need 3,000 s of training"


@pytest.mark.parametrize(("selection", "expected"), [("best", 0.9), ("last", 0.4)])
def test_the_value_is_the_best_or_the_last_validation_accuracy(selection, expected, monkeypatch):
    accuracies = iter([0.9, 0.4])
    monkeypatch.setattr("adamsrt.training.evaluate", lambda *args, **kwargs: (0.5, next(accuracies)))
    trainable = started(configuration(selection=selection))
    assert trainable.step()["value"] == 0.9
    assert trainable.step()["value"] == expected


def test_divergence_ends_the_trial_at_once():
    config = configuration("sgd")
    config["hyper_parameters"] |= {"lr": 1e30}
    result = started(config).step()
    assert result[DONE] is True
    # the only batch of the epoch has its loss taken before the step that ruins the weights
    assert failure_of(result) == "diverged: valid_loss is nan at epoch 1"
    assert not epoch_report(result).is_finite


def test_an_exception_in_the_model_ends_the_trial_with_one_line(monkeypatch):
    def explode(*args, **kwargs):
        raise RuntimeError("CUDA out of memory\nand a long story")

    trainable = started(configuration())
    monkeypatch.setattr(trainable._training, "run_epoch", explode)
    result = trainable.step()
    assert (result[DONE], failure_of(result)) == (True, "RuntimeError: CUDA out of memory")
    assert epoch_report(result) is None and math.isnan(result["value"])


def test_a_trial_that_cannot_be_built_fails_and_the_process_serves_the_next():
    trainable = started(configuration(model="resnet1"))
    assert "unknown model 'resnet1'" in failure_of(trainable.step())
    trainable.reset_config(configuration())
    assert failure_of(trainable.step()) is None


@pytest.mark.parametrize(
    ("error", "ends"), [(torch.AcceleratorError, True), (torch.OutOfMemoryError, False), (RuntimeError, False)]
)
def test_a_process_whose_gpu_takes_nothing_any_more_serves_no_further_trial(error, ends, monkeypatch):
    """As after an illegal access; the trial has lost a worker then. A full memory is the trial's own."""

    class Ended(BaseException):
        pass

    def fail(*_):
        raise error("the GPU")

    def leave(code):
        raise Ended(code)

    trainable = started(configuration())
    monkeypatch.setattr(trainable._training, "run_epoch", fail)
    monkeypatch.setattr("os._exit", leave)
    if ends:
        with pytest.raises(Ended):
            trainable.step()
    else:
        assert "the GPU" in failure_of(trainable.step())

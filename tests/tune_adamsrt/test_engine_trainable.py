"""A proxy keeps the contract of a trainable that trains by itself: results, failures, checkpoints, kept weights.

The engine's actor is called here without Ray; `test_engine_search` has Ray between them.
"""

import math
import os
import pickle

import pytest
import torch
from ray.exceptions import RayActorError
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from tune_adamsrt.checkpoints import CheckpointedTrainable
from tune_adamsrt.engine import trainable as engine_trainable
from tune_adamsrt.engine.actor import EngineActor, EngineLostError, Proxy
from tune_adamsrt.engine.trainable import EngineTrainable
from tune_adamsrt.trainable import epoch_report, failure_of
from tune_adamsrt.weights import load_weights

CLOCK = {"seconds", "train_images_per_second", SHOULD_CHECKPOINT}
EPOCHS = 3


class Line:
    """A proxy's line to an engine in this process; each has a slot of its own."""

    actors: dict[int, EngineActor]
    calls: list[str]
    is_cut = False

    def __init__(self, slots, threads):
        self._proxy = Proxy(os.getpid(), f"{len(self.calls)}")
        self._actor = self.actors.setdefault(slots, EngineActor(slots, threads, None, idle_s=math.inf))

    def ask(self, method, *arguments):
        self.calls.append(method)
        if Line.is_cut:
            raise EngineLostError
        return getattr(self._actor, method)(self._proxy, *arguments)


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(engine_trainable, "Connection", Line)
    monkeypatch.setattr("tune_adamsrt.engine.actor.EngineActor._free_slots_of_the_dead", lambda self: None)
    monkeypatch.setattr("tune_adamsrt.checkpoints.node_is_leaving", lambda: False)
    monkeypatch.setattr(Line, "actors", {}, raising=False)
    monkeypatch.setattr(Line, "calls", [], raising=False)
    yield Line
    torch.set_num_threads(threads)


def configuration(**protocol):
    return {
        "protocol": {
            "dataset": "digits",
            "model": "resnet20",
            "optimizer": "adamsrt",
            "epochs": EPOCHS,
            "batch_size": 32,
            "valid_split": 0.05,
            "split_seed": 0,
            "limit_train_examples": 40,
            "selection": "best",
        }
        | protocol,
        "place": {
            "data_root": "data",
            "device": "cpu",
            "cpus_per_trial": 1,
            "num_workers": 0,
            "checkpoint_epochs": (2,),
            "engine_slots": 2,
            "cuda_graph": True,
        },
        "trial_number": 5,
        "hyper_parameters": {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4},
        "seed": 7,
        "checkpoint": None,
    }


def started(trainable, config):
    """A trainable as Tune has it after its set-up, without the actor around it."""
    made = trainable.__new__(trainable)
    made.config = config
    made.setup(config)
    return made


def both(config):
    return [started(trainable, config) for trainable in (CheckpointedTrainable, EngineTrainable)]


def timeless(result):
    return {key: value for key, value in result.items() if key not in CLOCK}


def test_results_and_kept_weights_are_the_same(tmp_path):
    files = []
    results = []
    for trainable in (CheckpointedTrainable, EngineTrainable):
        config = configuration()
        config["place"]["keep_weights"] = str(tmp_path / trainable.__name__)
        made = started(trainable, config)
        results.append([made.step() for _ in range(EPOCHS)])
        files.append(load_weights(str(tmp_path / trainable.__name__ / "trial-5.pt")))
        assert [result[SHOULD_CHECKPOINT] for result in results[-1]] == [False, True, False]
        assert [result[DONE] for result in results[-1]] == [False, False, True]
        assert {type(value) for value in results[-1][0].values()} == {int, float, bool}
        made.cleanup()
    assert [timeless(result) for result in results[0]] == [timeless(result) for result in results[1]]
    assert all(epoch_report(result) is not None for result in results[1])
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert Line.actors[2]._engine.owners == [], "a proxy that ends frees its slot"


@pytest.mark.parametrize("selection", ["best", "last"])
def test_a_checkpoint_goes_from_one_kind_to_the_other(selection, tmp_path):
    apart, proxy = both(config := configuration(selection=selection))
    whole = [timeless(apart.step()) for _ in range(EPOCHS)]
    proxy.step()
    proxy.save_checkpoint(str(tmp_path))
    for trainable in (CheckpointedTrainable, EngineTrainable):
        restored = started(trainable, config)
        restored.load_checkpoint(str(tmp_path))
        assert restored._epoch == 1
        resumed = started(trainable, config | {"checkpoint": str(tmp_path)})
        assert timeless(restored.step()) == timeless(resumed.step()) == whole[1]
        restored.cleanup(), resumed.cleanup()
        proxy.cleanup()


@pytest.mark.parametrize(
    ("protocol", "hyper_parameters", "failure"),
    [
        ({"model": "resnet1"}, {}, "UnknownNameError: unknown model 'resnet1'"),
        ({}, {"lr": -1.0}, "ValueError: lr must be finite and >= 0"),
        ({"optimizer": "sgd"}, {"lr": 1e30}, "diverged: valid_loss is nan at epoch 1"),
    ],
)
def test_failures_are_told_in_the_same_words_and_the_slot_serves_the_next(protocol, hyper_parameters, failure):
    config = configuration(**protocol, epochs=1, batch_size=40)
    config["hyper_parameters"] = hyper_parameters or {"lr": 1e-3}
    results = []
    for made in both(config):
        results.append(made.step())
        assert failure_of(results[-1]).startswith(failure) and results[-1][DONE]
        assert made.reset_config(configuration())
        results.append(made.step())
        assert failure_of(results[-1]) is None
    assert failure_of(results[0]) == failure_of(results[2])
    assert timeless(results[1]) == timeless(results[3])


def test_an_engine_that_is_lost_is_a_lost_worker_and_no_failure(monkeypatch, tmp_path):
    proxy = started(EngineTrainable, configuration())
    proxy.step()
    monkeypatch.setattr(Line, "is_cut", True)
    proxy._last_result = {}
    assert proxy.save(str(tmp_path)).checkpoint is None  # as a checkpoint that cannot be kept
    for lost in (proxy.step, lambda: proxy.reset_config(configuration()), lambda: proxy.restore(str(tmp_path))):
        with pytest.raises(RayActorError) as error:
            lost()
        assert not error.value.preempted, "Tune counts it, so that what kills its engine is given up"
    proxy.cleanup()
    copy = pickle.loads(pickle.dumps(error.value))
    assert type(copy) is EngineLostError and str(copy) == str(error.value)
    monkeypatch.setattr(Line, "is_cut", False)
    assert proxy.reset_config(configuration()), "the next one is found"
    assert proxy.step()["epoch"] == 1

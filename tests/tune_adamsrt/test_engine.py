"""Slots of one process: each trial gives the numbers that it gives alone in a process of its own."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adamsrt.optimizers import OPTIMIZERS
from adamsrt.training import Training, build_loaders
from tune_adamsrt.engine.engine import MAX_SLOTS, Engine, NoFreeSlotError
from tune_adamsrt.trainable import training_spec

EPOCHS = 2
POINTS = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "sgdmrt": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def engine():
    made = Engine(3)
    yield made
    made.close()


def configuration(optimizer="adamsrt", *, seed=0, **protocol):
    return {
        "protocol": {
            "dataset": "digits",
            "model": "resnet20",
            "optimizer": optimizer,
            "epochs": EPOCHS,
            "batch_size": 32,
            "valid_split": 0.05,
            "split_seed": 0,
            "limit_train_examples": 40,  # with a smaller last batch
            "selection": "best",
        }
        | protocol,
        "place": {"data_root": "data", "device": "cpu", "num_workers": 0},
        "hyper_parameters": POINTS.get(optimizer, {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4}),
        "seed": seed,
    }


def timeless(result):
    return {name: value for name, value in result.items() if name not in ("seconds", "train_images_per_second")}


def alone(config):
    """What a trial gives with nothing beside it and nothing before it: every epoch, and the last weights."""
    training = Training(training_spec(config))
    results = [timeless(dataclasses.asdict(training.run_epoch())) for _ in range(EPOCHS)]
    return results, training.model.state_dict()


def in_slot(engine, owner, config):
    engine.begin(owner, config)
    results = [timeless(engine.run_epoch(owner)) for _ in range(EPOCHS)]
    weights = engine._of_owner[owner].training.model.state_dict()
    return results, {name: tensor.clone() for name, tensor in weights.items()}


def assert_same(ours, theirs):
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert [name for name in ours[1] if not torch.equal(ours[1][name], theirs[1][name])] == []


def test_trials_side_by_side_in_slots_that_others_used_give_what_they_give_alone(engine):
    """Bit by bit: every optimizer, three at a time, each slot used again and again, one trial diverging in between."""
    diverging = configuration("sgd", seed=50)
    diverging["hyper_parameters"] = {"lr": 1e30}
    configs = [diverging, *(configuration(name, seed=seed) for seed, name in enumerate(OPTIMIZERS))]
    begun = threading.Barrier(3)

    def take_turns(owner):
        mine = configs[owner::3]
        begun.wait()
        return [in_slot(engine, owner, config) for config in mine]

    before = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(take_turns, range(3)))
    assert torch.equal(before, torch.get_rng_state())
    models = {id(slot.training.model) for slot in engine._slots}
    assert len(models) == 3
    for owner, results in enumerate(taken):
        for config, result in zip(configs[owner::3], results, strict=True):
            if config is not diverging:
                assert_same(result, alone(config))


def test_the_next_trial_of_a_slot_is_trained_in_the_memory_of_the_last(engine):
    in_slot(engine, "a", configuration(seed=1))
    places = [tensor.data_ptr() for tensor in engine._of_owner["a"].training.model.parameters()]
    in_slot(engine, "a", configuration("sgd", seed=2))
    assert [tensor.data_ptr() for tensor in engine._of_owner["a"].training.model.parameters()] == places
    engine.end("a")
    other = configuration(seed=3, batch_size=16)
    assert_same(in_slot(engine, "b", other), alone(other))


def test_slots_share_one_copy_of_the_data_and_keep_their_own_order(engine):
    for owner, seed in (("a", 1), ("b", 2)):
        engine.begin(owner, configuration(seed=seed))
    one, two = (engine._of_owner[owner].training for owner in ("a", "b"))
    assert one._train._set is two._train._set and one._train is not two._train
    for training, seed in ((one, 1), (two, 2)):
        expected = build_loaders(training_spec(configuration(seed=seed)))[0]
        for ours, theirs in zip(training._train, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert one._train.with_seed(7)._seed == 7 and one._train._seed == 1


def test_a_trial_moves_between_slots_with_a_checkpoint(engine, tmp_path):
    expected, weights = alone(config := configuration(seed=4))
    engine.begin("a", config)
    engine.run_epoch("a")
    engine.save("a", tmp_path / "training.pt")
    engine.begin("b", config)
    engine.load("b", tmp_path / "training.pt")
    assert engine.progress("b")["epoch"] == 1
    assert timeless(engine.run_epoch("b")) == expected[1]
    moved = engine._of_owner["b"].training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in moved.model.state_dict().items())


def test_slots_are_handed_on_and_never_shared(engine):
    for owner in "abc":
        engine.begin(owner, configuration())
    with pytest.raises(NoFreeSlotError, match="all 3 are taken"):
        engine.begin("d", configuration())
    slot = engine._of_owner["b"]
    engine.end("b")
    engine.end("b")
    assert sorted(engine.owners) == ["a", "c"]
    engine.begin("d", configuration())
    assert engine._of_owner["d"] is slot


def test_a_trial_that_cannot_be_built_leaves_its_slot_to_the_next(engine):
    in_slot(engine, "a", configuration())
    wrong = configuration() | {"hyper_parameters": {"lr": -1.0}}
    with pytest.raises(ValueError, match="lr must be"):
        engine.begin("a", wrong)
    with pytest.raises(RuntimeError, match="must begin"):
        engine.run_epoch("a")
    assert_same(in_slot(engine, "a", configuration(seed=9)), alone(configuration(seed=9)))


def test_trials_of_two_precisions_do_not_share_a_process(engine):
    engine.begin("a", configuration())
    with pytest.raises(ValueError, match="one precision"):
        engine.begin("b", configuration(precision="bf16"))
    engine.end("a")
    engine.end("b")
    engine.begin("b", configuration(precision="bf16"))


@pytest.mark.parametrize("slots", [0, MAX_SLOTS + 1])
def test_a_number_of_slots_out_of_range_is_refused(slots):
    with pytest.raises(ValueError, match=f"1 to {MAX_SLOTS}, got {slots}"):
        Engine(slots)

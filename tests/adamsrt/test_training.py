"""Training: per-sample averages, schedule, best weights, seeds, and a resume that equals an uninterrupted run."""

import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from adamsrt import training as training_module
from adamsrt.dataloaders import DATASETS
from adamsrt.epoch import Totals, TrainStep
from adamsrt.graph import GraphedStep
from adamsrt.models import MODELS
from adamsrt.optimizers import OPTIMIZERS
from adamsrt.optimizers.base import GroupedOptimizer
from adamsrt.precision import float32_products
from adamsrt.training import EpochResult, Training, TrainingSpec, evaluate, lr_drop_epochs, norms, train_epoch

HYPER_PARAMETERS = {
    "adamsrt": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4},
    "sgdmrt": {"lr": 1e-1, "momentum": 0.9, "weight_decay": 1e-4},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small gain nothing from a second thread, and threads that wait for a busy core are slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits_spec(optimizer: str = "adamsrt", **changes) -> TrainingSpec:
    hyper_parameters = HYPER_PARAMETERS.get(optimizer, HYPER_PARAMETERS["adamsrt"])
    spec = TrainingSpec(
        "digits", "resnet20", optimizer, hyper_parameters, epochs=3, limit_train_examples=100, batch_size=64
    )
    return dataclasses.replace(spec, **changes)


class Batches:
    """A loader of fixed batches, of which the last is smaller."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
        self.batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
        self.num_examples = len(images)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        pass


def synthetic_batches(num_examples=21, batch_size=8, channels=1, size=8, seed=0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_examples, channels, size, size, generator=generator)
    return Batches(images, torch.randint(10, (num_examples,), generator=generator), batch_size)


def loss_and_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """The same in NumPy, over all samples at once."""
    z, y = logits.double().numpy(), labels.numpy()
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(y)), y].mean()), float((z.argmax(axis=1) == y).mean())


def all_tensors(state) -> dict[str, torch.Tensor]:
    """Flatten the tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return {"": state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {f"{name}.{path}": tensor for name, value in items for path, tensor in all_tensors(value).items()}


def assert_same_tensors(a, b) -> None:
    a, b = all_tensors(a), all_tensors(b)
    assert a.keys() == b.keys() and a
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def timeless(result: EpochResult) -> EpochResult:
    return dataclasses.replace(result, seconds=0.0, train_images_per_second=0.0)


# --- one epoch -------------------------------------------------------------------------------------------------------


def test_evaluate_averages_per_sample_over_a_partial_last_batch():
    batches = synthetic_batches()  # 8 + 8 + 5 samples
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.mul_(8)  # losses far apart, so that an average per batch would differ
        images = torch.cat([images for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        expected = loss_and_accuracy(model(images), labels)
    assert evaluate(model, batches) == pytest.approx(expected, rel=1e-6)
    per_batch = np.mean([loss_and_accuracy(model(x).detach(), y)[0] for x, y in batches])
    assert abs(per_batch - expected[0]) > 1e-3  # else this test shows nothing


def test_train_epoch_averages_the_losses_before_each_step():
    batches = synthetic_batches()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weight, bias = (p.detach().double().numpy().copy() for p in model[1].parameters())
    lr = 0.5
    got = train_epoch(model, torch.optim.SGD(model.parameters(), lr=lr), batches)

    loss_sum, correct = 0.0, 0
    for images, labels in batches:  # softmax regression by hand
        x, y = images.flatten(1).double().numpy(), labels.numpy()
        z = x @ weight.T + bias
        loss, accuracy = loss_and_accuracy(torch.from_numpy(z), labels)
        loss_sum, correct = loss_sum + loss * len(y), correct + round(accuracy * len(y))
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        error = (p - np.eye(10)[y]) / len(y)
        weight, bias = weight - lr * error.T @ x, bias - lr * error.sum(axis=0)
    assert got == pytest.approx((loss_sum / 21, correct / 21), rel=1e-5)
    np.testing.assert_allclose(model[1].weight.detach().numpy(), weight, atol=1e-5)


def test_on_batch_counts_the_batches():
    calls = []
    training = Training(digits_spec())
    training.run_epoch(lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_evaluate_leaves_model_and_its_statistics_alone():
    model = MODELS["resnet20"].build(10, in_channels=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, synthetic_batches())
    assert model.training
    assert_same_tensors(before, model.state_dict())


def test_evaluate_is_in_eval_mode():
    """In train mode BatchNorm would make an image's loss depend on the others of its batch."""
    model = MODELS["resnet20"].build(10, in_channels=1)
    one_by_one = evaluate(model, synthetic_batches(batch_size=1))
    assert evaluate(model, synthetic_batches(batch_size=21)) == pytest.approx(one_by_one, rel=1e-5)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(nn.Flatten(), [])
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="at least one batch"):
        train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1), [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_totals_are_the_sums_in_float64_batch_by_batch(dtype):
    """The same bits as Python's own sums, so that an epoch's loss depends on nothing but its batches."""
    generator = torch.Generator().manual_seed(0)
    totals = Totals()
    for _ in range(2):
        totals.reset()
        loss_sum, right, examples = 0.0, 0, 0
        for size in (128, 128, 77, 1):
            loss = torch.rand((), generator=generator, dtype=torch.float32).to(dtype) * 3
            logits = torch.randn(size, 5, generator=generator)
            labels = torch.randint(5, (size,), generator=generator)
            totals.add(loss, logits, labels)
            loss_sum, examples = loss_sum + float(loss) * size, examples + size
            right += int((logits.numpy().argmax(axis=1) == labels.numpy()).sum())
        assert totals.averages(examples) == (loss_sum / examples, right / examples)


def test_an_epoch_begins_its_totals_anew():
    batches = synthetic_batches()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(model, optimizer)
    assert train_epoch(model, optimizer, batches, step=step) == train_epoch(model, optimizer, batches, step=step)
    assert train_epoch(model, optimizer, batches) == step.totals.averages(21)


def test_epoch_result_is_plain_and_consistent():
    training = Training(digits_spec())
    result = training.run_epoch()
    assert {type(value) for value in dataclasses.asdict(result).values()} == {int, float}
    assert result.epoch == training.epoch == 1
    assert result.is_finite and 0 <= result.train_accuracy <= 1 and 0 <= result.valid_accuracy <= 1
    assert result.train_accuracy * 100 == pytest.approx(round(result.train_accuracy * 100))  # of 100 samples
    assert result.seconds > 0 and result.train_images_per_second >= 100 / result.seconds


def test_a_diverged_epoch_is_returned_and_is_never_the_best():
    training = Training(digits_spec(hyper_parameters={"lr": 1e-3}))
    with torch.no_grad():
        training.model.conv_params()[0].fill_(math.nan)
    result = training.run_epoch()
    assert not result.is_finite
    assert (training.best_epoch, training.best_valid_accuracy) == (0, -math.inf)
    with pytest.raises(RuntimeError, match="finite losses, got none in 1"):
        training.test()


# --- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "drops"),
    [(405, (135, 225, 315)), (9, (3, 5, 7)), (15, (5, 8, 12)), (3, (1, 2, 2)), (2, (1, 1, 2)), (1, (1, 1, 1))],
)
def test_lr_drop_epochs(epochs, drops):
    assert lr_drop_epochs(epochs) == drops


@pytest.mark.parametrize("optimizer", ["adamsrt", "sgdmrt"])
def test_the_learning_rate_drops_tenfold_in_every_group(optimizer, monkeypatch):
    def train_one_step(model, optimizer, *rest, step):
        optimizer.step()
        return 0.0, 0.0

    monkeypatch.setattr(training_module, "train_epoch", train_one_step)
    monkeypatch.setattr(training_module, "evaluate", lambda *rest, **options: (0.0, 0.0))
    training = Training(digits_spec(optimizer, epochs=405))
    lr = HYPER_PARAMETERS[optimizer]["lr"]
    lrs = []
    while training.epoch < 405:
        in_groups = {group["lr"] for group in training.optimizer.param_groups}
        lrs.append(training.run_epoch().lr)
        assert in_groups == {lrs[-1]}
    expected = [lr] * 135 + [lr / 10] * 90 + [lr / 100] * 90 + [lr / 1000] * 90
    assert lrs == pytest.approx(expected, rel=1e-9)


def test_there_is_no_epoch_after_the_last():
    training = Training(digits_spec(epochs=1))
    training.run_epoch()
    with pytest.raises(RuntimeError, match="1 of 1 done"):
        training.run_epoch()


# --- best weights ----------------------------------------------------------------------------------------------------


def test_the_best_weights_are_tested_and_training_can_go_on():
    training = Training(digits_spec(epochs=4, limit_train_examples=None))
    for _ in range(3):
        training.run_epoch()
    assert training.best_epoch > 0
    best_epoch, tested = training.best_epoch, training.test()
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.zero_()  # every class alike: about 10 % accuracy
    worse = training.run_epoch()
    assert worse.valid_accuracy < training.best_valid_accuracy
    assert training.best_epoch == best_epoch
    live = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    assert training.test() == tested
    assert tested.epoch == best_epoch and tested.test_accuracy > 0.3
    assert_same_tensors(live, training.model.state_dict())


def test_ties_keep_the_earliest_epoch(monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(training_module, "evaluate", lambda *rest, **options: (1.0, next(accuracies)))
    training = Training(digits_spec(epochs=4))
    for _ in range(4):
        training.run_epoch()
    assert (training.best_epoch, training.best_valid_accuracy) == (2, 0.7)


def test_testing_before_the_first_epoch_is_refused():
    with pytest.raises(RuntimeError, match="run_epoch first"):
        Training(digits_spec()).test()


# --- seeds and resume ------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = Training(digits_spec(seed=5))
    first.run_epoch()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(12)
    second, other = Training(digits_spec(seed=5)), Training(digits_spec(seed=6))
    second.run_epoch()
    assert_same_tensors(first.model.state_dict(), second.model.state_dict())
    assert not torch.equal(second.model.conv_params()[0], other.model.conv_params()[0])


@pytest.mark.parametrize("optimizer", ["adamsrt", "sgdmrt", "adamw"])
def test_resume_equals_an_uninterrupted_run_bit_for_bit(optimizer, tmp_path):
    spec = digits_spec(optimizer)
    whole = Training(spec)
    results = [whole.run_epoch() for _ in range(3)]

    interrupted = Training(spec)
    interrupted.run_epoch()
    torch.save(interrupted.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed = Training(dataclasses.replace(spec, data_root="elsewhere"))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.epoch == 1
    resumed_results = [resumed.run_epoch() for _ in range(2)]

    assert [timeless(r) for r in resumed_results] == [timeless(r) for r in results[1:]]
    assert_same_tensors(resumed.state_dict(), whole.state_dict())
    assert resumed.test() == whole.test()
    assert (resumed.best_epoch, resumed.best_valid_accuracy) == (whole.best_epoch, whole.best_valid_accuracy)


def test_a_state_is_a_copy_and_holds_plain_values_only():
    def assert_plain(value) -> None:
        assert type(value) in (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor), type(value)
        for part in value.values() if type(value) is dict else value if type(value) in (list, tuple) else ():
            assert_plain(part)

    training = Training(digits_spec())
    training.run_epoch()
    state = training.state_dict()
    assert_plain(state)
    before = {name: tensor.clone() for name, tensor in all_tensors(state).items()}
    one, two = Training(digits_spec()), Training(digits_spec())
    for other in (one, two):
        other.load_state_dict(state)
    training.run_epoch()
    one.run_epoch()
    assert_same_tensors(before, all_tensors(state))
    two.run_epoch()
    assert_same_tensors(one.state_dict(), two.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "cifar10"},
        {"model": "resnet18"},
        {"optimizer": "adams"},
        {"epochs": 4},
        {"seed": 1},
        {"batch_size": 32},
        {"precision": "bf16"},
        {"hyper_parameters": {"lr": 2e-3, "betas": (0.9, 0.99)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_state_of_another_spec_is_refused(changes):
    state = Training(digits_spec()).state_dict()
    name = next(iter(changes))
    state["spec"] |= changes
    with pytest.raises(ValueError, match=f"the state must be of the same spec, got {name} "):
        Training(digits_spec()).load_state_dict(state)


def test_betas_may_have_become_a_list():
    spec = digits_spec()
    as_lists = {**spec.hyper_parameters, "betas": list(spec.hyper_parameters["betas"])}
    Training(spec).load_state_dict(Training(digits_spec(hyper_parameters=as_lists)).state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"model": "vgg16"}, "vgg16 needs images of at least 32x32, got 8x8"),
        ({"optimizer": "adamsr"}, "did you mean 'adamsrt'"),
        ({"precision": "fp16"}, "precision must be one of fp32, tf32, bf16, got 'fp16'"),
        ({"hyper_parameters": {"lr": -1}}, "lr"),
        ({"hyper_parameters": {"momentum": 0.9}}, "momentum"),
    ],
)
def test_what_does_not_exist_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Training(digits_spec(**changes))


# --- after a predecessor ---------------------------------------------------------------------------------------------

# Every option differs, and what is left out takes its default again.
OF_THE_PREDECESSOR = {
    name: {"lr": 2e-2, "weight_decay": 1e-2}
    | ({"momentum": 0.5} if "momentum" in entry.hyper_parameters else {"betas": [0.5, 0.7]})
    for name, entry in OPTIMIZERS.items()
}
OF_THE_NEXT = {
    name: {"lr": 1e-3} | ({"momentum": 0.9} if "momentum" in entry.hyper_parameters else {"betas": [0.8, 0.95]})
    for name, entry in OPTIMIZERS.items()
}


def trained(optimizer: str, epochs: int = 2) -> Training:
    """A predecessor whose learning rate has dropped."""
    training = Training(digits_spec(optimizer, hyper_parameters=OF_THE_PREDECESSOR[optimizer], seed=7))
    for _ in range(epochs):
        training.run_epoch()
    return training


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_what_follows_a_predecessor_is_a_fresh_training_bit_for_bit(optimizer):
    """One of the same name, whose optimizer is begun anew where it is ours, and one of another name."""
    spec = digits_spec(optimizer, hyper_parameters=OF_THE_NEXT[optimizer])
    fresh = Training(spec)
    expected = [timeless(fresh.run_epoch()) for _ in range(2)]
    other = "sgdmrt" if optimizer == "adamsrt" else "adamsrt"
    for predecessor in (trained(optimizer), trained(other)):
        model, its_optimizer = predecessor.model, predecessor.optimizer
        training = Training(spec, predecessor=predecessor)
        is_kept = predecessor.spec.optimizer == optimizer and isinstance(its_optimizer, GroupedOptimizer)
        assert training.model is model and (training.optimizer is its_optimizer) == is_kept
        assert training._train._set is predecessor._train._set, "a second copy of the data"
        assert [timeless(training.run_epoch()) for _ in range(2)] == expected
        ours, theirs = training.state_dict(), fresh.state_dict()
        assert_same_tensors(ours, theirs)
        assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
        assert ours["scheduler"] == theirs["scheduler"]


def test_a_training_that_follows_resumes_bit_for_bit():
    spec = digits_spec(hyper_parameters=OF_THE_NEXT["adamsrt"])
    whole, resumed = Training(spec), Training(spec, predecessor=trained("adamsrt"))
    whole.run_epoch()
    resumed.load_state_dict(whole.state_dict())
    assert [timeless(resumed.run_epoch()) for _ in range(2)] == [timeless(whole.run_epoch()) for _ in range(2)]
    assert_same_tensors(resumed.state_dict(), whole.state_dict())


def test_the_best_weights_of_a_predecessor_stay_as_they_are():
    predecessor = trained("adamsrt")
    tested, best = predecessor.test(), predecessor.state_dict()["best_weights"]
    following = Training(digits_spec(seed=1), predecessor=predecessor)
    following.run_epoch()
    assert_same_tensors(predecessor.state_dict()["best_weights"], best)
    assert predecessor.test() == tested != following.test()


@pytest.mark.parametrize("other", [{"limit_train_examples": 64}, {"split_seed": 1}, {"batch_size": 16}])
def test_a_training_on_other_data_takes_no_loaders_over(other):
    spec = digits_spec(**other)
    assert timeless(Training(spec, predecessor=trained("adamsrt", epochs=1)).run_epoch()) == timeless(
        Training(spec).run_epoch()
    )


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [({"lr": -1.0}, "lr must be"), ({"momentum": 0.9}, "must be among lr"), ({"lr": 1e-3, "eps": 1e-3}, "got eps")],
)
def test_what_a_fresh_training_refuses_one_that_follows_refuses_too(hyper_parameters, message):
    predecessor = trained("adamsrt", epochs=1)
    with pytest.raises(ValueError, match=message):
        Training(digits_spec(hyper_parameters=hyper_parameters), predecessor=predecessor)
    assert timeless(Training(digits_spec(), predecessor=predecessor).run_epoch()) == timeless(
        Training(digits_spec()).run_epoch()
    )


# --- precision and memory format -------------------------------------------------------------------------------------


def test_bf16_agrees_with_fp32_within_its_rounding():
    """One epoch of the whole digits, 90 steps: bfloat16 has 8 bits, so that single steps agree to a percent."""
    hyper_parameters = {"lr": 5e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4}
    spec = digits_spec(limit_train_examples=None, batch_size=32, epochs=1, hyper_parameters=hyper_parameters)
    reference, half = (Training(dataclasses.replace(spec, precision=each)) for each in ("fp32", "bf16"))
    expected, result = reference.run_epoch(), half.run_epoch()
    assert result.train_loss == pytest.approx(expected.train_loss, rel=0.05)
    assert result.train_accuracy == pytest.approx(expected.train_accuracy, abs=0.03)
    assert expected.valid_accuracy > 0.8 and result.valid_accuracy > 0.8
    assert result.weight_norm == pytest.approx(expected.weight_norm, rel=0.02)
    assert result.train_loss != expected.train_loss, "it was computed in bfloat16"
    assert {each.dtype for each in half.model.parameters()} == {torch.float32}
    assert {each.dtype for each in all_tensors(half.optimizer.state_dict()).values()} == {torch.float32}


def test_validation_is_in_the_precision_of_training():
    training = Training(digits_spec(precision="bf16"))
    valid = training._valid
    expected = evaluate(training.model, valid, precision="bf16", memory_format=torch.channels_last)
    assert training._evaluate(valid) == expected != evaluate(training.model, valid)


def test_a_bf16_run_resumes_bit_for_bit():
    spec = digits_spec(precision="bf16")
    whole, interrupted, resumed = Training(spec), Training(spec), Training(spec)
    interrupted.run_epoch()
    resumed.load_state_dict(interrupted.state_dict())
    results = [whole.run_epoch() for _ in range(3)]
    assert [timeless(resumed.run_epoch()) for _ in range(2)] == [timeless(each) for each in results[1:]]
    assert_same_tensors(resumed.state_dict(), whole.state_dict())


def test_a_diverged_bf16_epoch_is_seen():
    training = Training(digits_spec(precision="bf16"))
    with torch.no_grad():
        training.model.conv_params()[0].fill_(math.inf)
    assert not training.run_epoch().is_finite


def test_tf32_is_fp32_on_a_cpu_and_leaves_the_switches_of_the_process_alone():
    backends = torch.backends
    before = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.allow_tf32
    fp32, tf32 = Training(digits_spec()), Training(digits_spec(precision="tf32"))
    assert timeless(fp32.run_epoch()) == timeless(tf32.run_epoch())
    assert before == (
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), (None, "")])
def test_the_switches_of_a_gpu_are_set_and_put_back(precision, expected):
    backends = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    with pytest.raises(KeyError), float32_products(precision, torch.device("cuda")):
        inside = [switch.fp32_precision for switch in switches]
        raise KeyError
    assert inside == ([expected] * 3 if expected else before)
    assert [switch.fp32_precision for switch in switches] == before
    assert backends.cudnn.allow_tf32 in (True, False), "torch takes the switches as one state"


def test_a_state_of_a_version_without_precision_goes_on():
    state = Training(digits_spec()).state_dict()
    del state["spec"]["precision"]
    Training(digits_spec()).load_state_dict(state)
    with pytest.raises(ValueError, match="got precision 'fp32' where 'bf16' is trained"):
        Training(digits_spec(precision="bf16")).load_state_dict(state)


def test_weights_gradients_and_momenta_lie_in_channels_last():
    training = Training(digits_spec())
    training.run_epoch()
    for weight in training.model.conv_params():
        momentum = training.optimizer.state[weight]["exp_avg"]
        for each in (weight, weight.grad, momentum):
            assert each.is_contiguous(memory_format=torch.channels_last)


def test_memory_format_changes_the_rounding_only():
    """An epoch of two steps in both formats."""
    contiguous, channels_last = (Training(digits_spec(hyper_parameters={"lr": 1e-3})) for _ in range(2))
    contiguous.model.to(memory_format=torch.contiguous_format)
    contiguous._step.memory_format = contiguous._memory_format = torch.contiguous_format
    a, b = contiguous.run_epoch(), channels_last.run_epoch()
    assert (a.train_loss, a.valid_loss) == pytest.approx((b.train_loss, b.valid_loss), rel=1e-4)


def test_a_state_of_a_gpu_does_not_bring_its_way_of_stepping():
    """With a graph the optimizer is capturable; elsewhere the numbers are the same without."""
    spec = digits_spec()
    training, other = Training(spec), Training(spec)
    training.run_epoch()
    state = training.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["capturable"] = True
    other.load_state_dict(state)
    assert not any(group["capturable"] for group in other.optimizer.param_groups)
    assert timeless(other.run_epoch()) == timeless(training.run_epoch())


@pytest.mark.parametrize(
    ("has_graph", "precision", "fuses"), [(True, "bf16", True), (True, "fp32", False), (False, "bf16", False)]
)
def test_norms_are_fused_in_bf16_where_steps_are_captured(has_graph, precision, fuses, monkeypatch):
    monkeypatch.setattr(training_module, "_takes_graph", lambda spec: has_graph)
    step = Training(digits_spec(precision=precision))._step
    assert isinstance(step, GraphedStep) == has_graph
    assert (step._step if isinstance(step, GraphedStep) else step)._fuses_norms == fuses


def test_a_step_without_a_graph_is_what_a_cpu_takes():
    with_graph, without = Training(digits_spec(cuda_graph=True)), Training(digits_spec())
    assert timeless(with_graph.run_epoch()) == timeless(without.run_epoch())
    without.load_state_dict(with_graph.state_dict())  # it says how to run, not what


# --- every optimizer on every model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("model", list(MODELS))
def test_every_optimizer_trains_every_model(model, optimizer, monkeypatch):
    size = MODELS[model].min_image_size

    def get_dataloaders(**options):
        assert options["train_batch_size"] == 4 and "valid_split" not in options
        return tuple(synthetic_batches(8, 4, channels=3, size=size, seed=seed) for seed in range(3))

    entry = SimpleNamespace(num_classes=10, in_channels=3, image_size=size, get_dataloaders=get_dataloaders)
    monkeypatch.setattr(training_module, "DATASETS", {"synthetic": entry})
    training = Training(TrainingSpec("synthetic", model, optimizer, {"lr": 1e-3}, epochs=1, batch_size=4))
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    assert training.run_epoch().is_finite
    assert [name for name, p in training.model.named_parameters() if torch.equal(p, before[name])] == []
    assert training.test().epoch == 1


def test_the_spec_reaches_the_data(monkeypatch):
    seen = {}
    digits = DATASETS["digits"]

    def get_dataloaders(**options):
        seen.update(options)
        return digits.get_dataloaders(**options)

    entry = SimpleNamespace(
        num_classes=digits.num_classes,
        in_channels=digits.in_channels,
        image_size=digits.image_size,
        get_dataloaders=get_dataloaders,
    )
    monkeypatch.setattr(training_module, "DATASETS", {"digits": entry})
    Training(digits_spec(seed=1, split_seed=2, valid_split=0.3, data_root="there", num_workers=0))
    assert seen == {
        "train_batch_size": 64,
        "test_batch_size": 2048,
        "dataset_root_path": "there",
        "num_workers": 0,
        "seed": 1,
        "split_seed": 2,
        "limit_train_examples": 100,
        "device": "cpu",
        "valid_split": 0.3,
    }


class TestNorms:
    """What is measured of the scale-invariant weights after an epoch."""

    def test_equal_numpys_in_float64(self):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3, 3, 3), (7, 4, 1, 1))]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        rows = [row for weight in weights for row in weight.detach().double().numpy().reshape(len(weight), -1)]
        grads = [row for weight in weights for row in weight.grad.double().numpy().reshape(len(weight), -1)]
        measured = norms(weights, lr=0.3)
        expected = {
            "weight_norm": np.mean([np.linalg.norm(row) for row in rows]),
            "grad_norm": np.mean([np.linalg.norm(row) for row in grads]),
            "effective_lr": np.mean([0.3 / np.dot(row, row) for row in rows]),
        }
        assert measured == pytest.approx(expected, rel=1e-12)

    def test_a_weight_without_a_gradient_counts_as_zero(self):
        weights = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))]
        weights[0].grad = torch.full((2, 3), 2.0)
        assert norms(weights, lr=0.1)["grad_norm"] == pytest.approx(12**0.5 / 2)

    def test_the_effective_lr_follows_the_learning_rate_where_the_weights_stay_on_their_spheres(self):
        """Epochs 1, 2 and 2: the rate drops tenfold after epoch 1, then hundredfold; AdamSRT hardly moves the norms."""
        training = Training(digits_spec())
        results = [training.run_epoch() for _ in range(3)]
        assert [result.lr for result in results] == pytest.approx([1e-3, 1e-4, 1e-6])
        for result in results:
            assert result.effective_lr == pytest.approx(
                norms(training.model.conv_params(), lr=result.lr)["effective_lr"], rel=0.05
            )
        assert results[0].effective_lr / results[1].effective_lr == pytest.approx(10, rel=0.05)
        assert results[1].effective_lr / results[2].effective_lr == pytest.approx(100, rel=0.05)
        last = norms(training.model.conv_params(), lr=results[2].lr)
        assert (last["weight_norm"], last["grad_norm"]) == (results[2].weight_norm, results[2].grad_norm)

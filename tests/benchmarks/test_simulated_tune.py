"""The simulated controller against the real one: the same configurations, trained for the same epochs."""

import pytest

from benchmarks.curves import EPOCHS, PROBLEMS
from benchmarks.search_efficiency import Ours, Stock
from benchmarks.simulated_tune import SimulatedTrial, own_part, simulate

PROBLEM = next(problem for problem in PROBLEMS if problem.name == "plain")
SEED = 3
TRIALS = 12  # more than the samplers' ten random ones

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's, about experimental and independent sampling; Ray's


def make_ours():
    return Ours(SEED, max_trials=TRIALS)


def make_stock():
    return Stock(SEED, grace_period=10, reduction_factor=3)


def simulated(arm):
    trials = simulate(arm, PROBLEM, SEED, max_epochs=TRIALS * EPOCHS, max_trials=TRIALS, max_concurrent=1)
    return [(trial.hyper_parameters, trial.epoch) for trial in trials]


@pytest.mark.parametrize("make_arm", [make_ours, make_stock])
def test_a_simulated_search_can_be_repeated(make_arm):
    first = simulated(make_arm())
    assert len(first) == TRIALS
    assert {epochs for _, epochs in first} > {EPOCHS}  # some ended early
    assert simulated(make_arm()) == first


@pytest.mark.slow
@pytest.mark.parametrize("make_arm", [make_ours, make_stock])
def test_it_decides_as_ray_tune_does(make_arm, tmp_path):
    import ray
    from ray import tune

    class Worker(tune.Trainable):
        def setup(self, config):
            self.reset_config(config)

        def reset_config(self, config):
            self.trial = SimulatedTrial(config.get("trial_number", 0), config["hyper_parameters"], PROBLEM, SEED)
            self.arm = config["arm_has_our_trainable"]
            return True

        def step(self):
            return self.trial.train() | own_part(self.trial, self.arm)

        def save_checkpoint(self, folder):
            return None

        def load_checkpoint(self, folder):
            return None

    arm = make_arm()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        results = tune.Tuner(
            Worker,
            param_space={"arm_has_our_trainable": arm.has_our_trainable},
            tune_config=tune.TuneConfig(
                search_alg=arm.searcher,
                scheduler=arm.scheduler,
                num_samples=TRIALS,
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    real = [(result.config["hyper_parameters"], result.metrics["training_iteration"]) for result in results]
    assert real == simulated(make_arm())

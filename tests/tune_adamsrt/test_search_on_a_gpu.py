"""A search on a GPU, as the command of a user: Ray's real processes, on a stand-in that keeps CUDA's rules.

It computes nothing, so that losses mean nothing here: what a GPU is asked to do counts.
"""

import json
from collections import Counter

import pytest
import standin_gpu
from search_process import SEARCH

pytestmark = pytest.mark.skipif(bool(standin_gpu.why_not()), reason=str(standin_gpu.why_not()))

TRIALS, EPOCHS = 4, 4
GRAPHS = 3  # passes on a whole batch, on the last one of an epoch, and the optimizer's step
STEPS = 4  # an epoch's, of 32, 32, 32 and 4 images


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize(("options", "slots"), [(["--trials-per-gpu", "2"], 2), (["--gpus-per-trial", "1"], 1)])
def test_trials_replay_graphs_that_are_captured_once(tmp_path, options, slots):
    setting = tmp_path / "resnet20-digits.yaml"
    setting.write_text(f"{{model: resnet20, dataset: digits, batch_size: 32, epochs: {EPOCHS}, min_epochs: 2}}")
    trace = standin_gpu.run(
        *(*SEARCH[1:], "--setting", str(setting), "--scheduler", "fifo", "--sampler", "random"),
        *("--trials", str(TRIALS), "--limit-train-examples", "100", "--precision", "bf16", *options),
        log=tmp_path / "calls.log",
        environment={
            "ADAMSRT_CACHE_DIR": str(tmp_path / "cache"),
            "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "GPU": 1}),  # Ray asks NVML, which is not there
        },
        folder=tmp_path,
    )
    assert f"{TRIALS} of {TRIALS}: {TRIALS} complete" in trace.output
    assert trace.kinds["capture"] == trace.kinds["instantiated"] == slots * GRAPHS
    assert not trace.of("refused ")
    replays = Counter(trace.of("replay "))
    assert replays.total() > 2 * STEPS * EPOCHS * (TRIALS - slots)

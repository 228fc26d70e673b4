"""What a GPU is asked to do, and what waits for it, by a stand-in that computes nothing but keeps CUDA's rules.

Numbers are for Triton's interpreter (test_kernels.py, test_fused_norm.py) and for benchmarks/gpu.py on a real one.
"""

from collections import Counter

import pytest
import standin_gpu
from standin_gpu import Trace

# What runs on BatchNorm in a pass of ResNet20, forward and backward: 21 layers.
NORM_KERNELS = {"moments": 21, "normalize": 21, "grad_sums": 21, "gradients": 21}
CONVOLUTIONS = 21 + 21 + 20  # forward, gradients of the weights and of the images, but for the first layer's

pytestmark = pytest.mark.skipif(bool(standin_gpu.why_not()), reason=str(standin_gpu.why_not()))


@pytest.fixture
def work(tmp_path):
    def run(*arguments: str, **environment: str) -> Trace:
        own = {"ADAMSRT_CACHE_DIR": str(tmp_path / "cache")} | environment
        return standin_gpu.run("tests/gpu_work.py", *arguments, log=tmp_path / "calls.log", environment=own)

    return run


def test_the_stand_in_refuses_what_a_gpu_would(work):
    said = dict(line.split(": ") for line in work("refusals").output.splitlines() if line.endswith(("ed", "sed")))
    assert said == {
        "adds": "captured",
        "reads a value": "refused",
        "waits for the device": "refused",
        "waits for an event": "refused",
        "copies from memory that may be paged out": "refused",
        "forks": "refused",
        "forks and joins": "captured",
        "lets another thread wait": "captured",
    }


@pytest.mark.parametrize(
    ("optimizer", "kernels"),
    [
        ("adamsrt", ["count", "adam_srt", "adam"]),
        ("adams", ["count", "adam_srt", "adam"]),  # one kernel, told what to leave out
        ("adamg", ["count", "adam_g", "adam"]),
        ("sgdmrt", ["sgd_mrt", "sgd"]),
    ],
)
def test_a_step_is_one_launch_for_all_scale_invariant_weights_and_one_for_the_rest(work, optimizer, kernels):
    assert work("step", optimizer).between().lines == [f"launch {kernel}" for kernel in kernels]


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_an_epoch_is_replays_and_copies_of_batches_and_nothing_waits_in_it(work, precision):
    check_epochs(work("epochs", precision))


@pytest.mark.slow(seconds=4)
def test_in_bf16_as_well_and_batchnorm_is_kernels_of_ours(work):
    trace = work("epochs", "bf16")
    check_epochs(trace)
    graphs = graphs_of(trace)
    assert graphs[2] == Counter(["count", "adam_srt", "adam"])
    for passes in (graphs[1], graphs[3]):
        assert {name: passes[name] for name in NORM_KERNELS} == NORM_KERNELS
        assert passes["cudnnBackendExecute"] == CONVOLUTIONS
        assert not [name for name in passes if "BatchNorm" in name or "batch_norm" in name]
    assert graphs[1].total() == 179  # 84 BatchNorm, 62 convolutions, 9 additions of gradients, 24 others


def check_epochs(trace: Trace) -> None:
    """Check the steps of an epoch but its first, and what was captured for them."""
    whole, last = (f"copy dtod {size * 8 * 8 * 4}" for size in (32, 12))
    passes, update, passes_of_last = "replay 1", "replay 2", "replay 3"
    labels_of_whole, labels_of_last = (f"copy dtod {size * 8}" for size in (32, 12))
    assert trace.between().lines == [
        *[whole, labels_of_whole, passes, update] * 8,
        *[last, labels_of_last, passes_of_last, update],
    ]
    assert trace.kinds["capture"] == trace.kinds["instantiated"] == 3
    assert not Trace(trace.of("captured "), "").of("copy htod", "copy dtoh", "wait", "host")
    assert not trace.of("refused ")


def graphs_of(trace: Trace) -> dict[int, "Counter[str]"]:
    """Give the kernels of each graph."""
    graphs: dict[int, Counter[str]] = {}
    for line in trace.lines:
        if line.startswith("capture "):
            number = int(line.split()[1])
            graphs[number] = Counter()
        elif line.startswith("captured launch "):
            graphs[number][line.removeprefix("captured launch ")] += 1
    return graphs


def test_batches_of_a_set_that_fits_are_prepared_at_once(work):
    trace = work("images", "training")
    assert trace.between().lines == []
    prepared = [line for line in trace.lines if line.startswith(("launch", "copy"))]
    assert len(prepared) < 40


def test_a_set_that_takes_over_half_of_the_memory_stays_on_the_host(work):
    """4,000 images are 12.3 MB; in float32, as batches, 49."""
    trace = work("images", "training", CUDA_STANDIN_MEMORY=str(20 << 20))
    copied = [int(line.split()[-1]) for line in trace.lines if line.startswith("copy htod")]
    assert max(copied) == 32 * 3 * 32 * 32  # a batch of bytes

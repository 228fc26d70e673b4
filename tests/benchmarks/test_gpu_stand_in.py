"""benchmarks/gpu.py beside a stand-in for a GPU, which computes nothing: a real one may be had only once."""

import subprocess
import sys

import pytest
import standin_gpu
from search_process import REPOSITORY, environment

pytestmark = pytest.mark.skipif(bool(standin_gpu.why_not()), reason=str(standin_gpu.why_not()))

SECTIONS = ("machine", "graphs", "epochs", "steps", "slots", "start", "arms")


@pytest.mark.slow(seconds=45)
def test_every_part_comes_to_its_end_and_a_gpu_would_refuse_nothing(tmp_path):
    log = tmp_path / "calls.log"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small", "--out", str(tmp_path / "out"), "--sections", *SECTIONS],
        env=environment(tmp_path) | standin_gpu.environment_of(log),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
    )
    table = (tmp_path / "out" / "table.md").read_text()
    assert "## Aims and checks" in table, result.stdout + result.stderr
    assert "NOT MEASURED" not in table  # by an error, or a process that died
    assert "holds         nothing waits for the GPU inside an epoch: 7 optimizers, with and without a graph" in table
    trace = standin_gpu.Trace(log.read_text().splitlines(), "")
    assert trace.kinds["capture"] == trace.kinds["instantiated"] > 0
    assert not trace.of("refused ")

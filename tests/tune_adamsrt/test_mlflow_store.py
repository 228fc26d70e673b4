"""MLflow's database file: made as a whole, whoever is killed meanwhile."""

import subprocess
import sys

from tune_adamsrt.mlflow.store import open_experiment

# Ends between the tables and their version, where MLflow itself would leave a file that it never opens again.
KILLED_HALF_WAY = """
import os, signal, sys
import mlflow.store.db.utils as utils
from tune_adamsrt.mlflow.store import open_experiment

utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
open_experiment(sys.argv[1], "digits")
"""


def test_a_process_killed_while_it_makes_the_tables_leaves_nothing_in_the_way(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, uri], capture_output=True, text=True, timeout=300)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "mlflow.db").exists()
    client, experiment_id = open_experiment(uri, "digits")
    assert client.get_experiment(experiment_id).name == "digits"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]

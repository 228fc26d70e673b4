"""Which ports a search on this machine opens."""

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs in a process of its own, which is the whole tree that is looked at.
PROGRAM = """
import json, logging
from tune_adamsrt.resources import connect
connect("local")
import ray, psutil

@ray.remote(num_cpus=1)
class Trial:
    def is_there(self):
        return True

assert ray.get(Trial.remote().is_there.remote())
me = psutil.Process()
sockets = [
    (process.name(), socket.laddr.ip)
    for process in [me, *me.children(recursive=True)]
    for socket in process.net_connections("inet")
    if socket.status == psutil.CONN_LISTEN
]
print(json.dumps(sockets))
"""


@pytest.mark.slow
def test_nothing_listens_beyond_this_machine() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sockets = json.loads(done.stdout.splitlines()[-1])
    assert {"raylet", "gcs_server"} <= {name for name, _ in sockets}
    beyond = [(name, ip) for name, ip in sockets if not is_loopback(ip)]
    assert beyond == []


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

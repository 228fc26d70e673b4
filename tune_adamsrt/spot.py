"""Watches for a cloud's notice that it takes this machine away, and tells Ray: `python -m tune_adamsrt.spot`.

`cluster/node_setup.sh` starts it on every node. AWS gives two minutes, Google Cloud 30 seconds. Ray then starts nothing
more here, and trials leave at the end of their epoch, with a checkpoint (see `CheckpointedTrainable`).
"""

import argparse
import datetime
import email.utils
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from email.message import Message

METADATA = "http://169.254.169.254"  # of AWS and of Google Cloud
AWS_NOTICE_S, GCP_NOTICE_S = 120.0, 30.0
POLL_EVERY_S = 2.0
ANSWER_TIMEOUT_S = 2.0
SILENT_FOR_S = 60.0  # so long without an answer, and this machine is in neither cloud
# Ray counts a loss as announced only after this deadline. Early: an epoch may last longer than the notice.
DEADLINE_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Watch until the notice comes and Ray knows. Returns 0, also where there is nothing to watch."""
    parser = argparse.ArgumentParser(prog="python -m tune_adamsrt.spot", description=__doc__.splitlines()[0])
    parser.add_argument("--metadata", metavar="URL", default=METADATA, help=f"default: {METADATA}")
    parser.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster (default: this machine's)")
    parser.add_argument("--node-id", metavar="ID", help="Ray's id of the node (default: this machine's)")
    arguments = parser.parse_args(argv)
    notice = find_cloud(arguments.metadata)
    if notice is None:
        print("no cloud's metadata service answers here: nothing to watch", flush=True)
        return 0
    print(f"watching {arguments.metadata}", flush=True)
    while True:
        try:
            seconds_left = notice()
        except OSError:  # it is busy; the next answer counts
            seconds_left = None
        if seconds_left is not None and drain(seconds_left, address=arguments.address, node_id=arguments.node_id):
            print(f"taken away in {seconds_left:.0f} s: Ray drains this node", flush=True)
            return 0
        time.sleep(POLL_EVERY_S)


def find_cloud(metadata: str) -> Callable[[], float | None] | None:
    """Find out whose machine this is: a function that gives the seconds left (None without a notice), or None."""
    deadline = time.monotonic() + SILENT_FOR_S
    while time.monotonic() < deadline:
        try:
            _, _, headers = ask(metadata)
            is_google = headers.get("Metadata-Flavor") == "Google"
            return lambda: (gcp_notice if is_google else aws_notice)(metadata)
        except OSError:
            time.sleep(POLL_EVERY_S)
    return None


def aws_notice(metadata: str) -> float | None:
    """Give the seconds that are left to this AWS machine; None without a notice. Raises OSError."""
    _, token, _ = ask(f"{metadata}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    status, text, headers = ask(
        f"{metadata}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}
    )
    if status != 200:
        return None
    try:
        # Both times are the service's: the clock of this machine may be wrong.
        now = email.utils.parsedate_to_datetime(headers["Date"])
        return max(0.0, (datetime.datetime.fromisoformat(json.loads(text)["time"]) - now).total_seconds())
    except (KeyError, TypeError, ValueError):
        return AWS_NOTICE_S


def gcp_notice(metadata: str) -> float | None:
    """Give the seconds that are left to this Google Cloud machine; None without a notice. Raises OSError."""
    _, text, _ = ask(f"{metadata}/computeMetadata/v1/instance/preempted", "GET", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE_S if text.strip() == "TRUE" else None


def ask(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str, Message]:
    """Give status, text and headers of an answer, whatever its status. Raises OSError where there is none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with direct.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.headers


def drain(seconds_left: float, *, address: str | None = None, node_id: str | None = None) -> bool:
    """Have Ray drain a node, which it then ends as soon as nothing runs there. Returns whether it does.

    Args:
        address, node_id: None for the cluster and the node of this machine.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes this machine away"]
    command += ["--deadline-remaining-seconds", str(max(1, int(min(DEADLINE_S, seconds_left / 2))))]
    command += (["--address", address] if address else []) + (["--node-id", node_id] if node_id else [])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        print(" ".join((done.stdout + done.stderr).split())[-300:], flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())

"""The process behind a `Tunnel`: `python -m tune_adamsrt.cluster.open_tunnel CLUSTER_FILE LOCAL_PORT REMOTE_PORT`.

Ray finds the head and its key, and runs SSH. It ends with the process that has started it, however that ends: that one
holds the other end of its standard input.
"""

import os
import signal
import sys
import threading


def main() -> None:
    starter = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # SSH would read from it too
    threading.Thread(target=end_with, args=(starter,), daemon=True).start()
    from ray.autoscaler.sdk import run_on_cluster

    cluster_file, local_port, remote_port = sys.argv[1:]
    run_on_cluster(cluster_file, port_forward=(int(local_port), int(remote_port)))


def end_with(starter: int) -> None:
    """End this process group, with its SSH, when the other end of a pipe is closed."""
    os.read(starter, 1)
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main()

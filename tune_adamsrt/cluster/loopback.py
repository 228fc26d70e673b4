"""A Ray that is started on this machine, for this machine: it listens on 127.0.0.1 only."""

import contextlib
from collections.abc import Iterator

from ray._private import ray_constants


@contextlib.contextmanager
def on_this_machine_only() -> Iterator[None]:
    """What `ray.init(address="local")` starts meanwhile listens on 127.0.0.1, as Ray does by itself on macOS.

    On Linux it would listen on all interfaces (Ray 2.60), and `_node_ip_address="127.0.0.1"` changes nothing: Ray
    replaces it by the address to the outside.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before

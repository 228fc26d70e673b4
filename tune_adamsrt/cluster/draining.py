"""A node that is about to be taken away, seen from a worker on it.

`tune_adamsrt.spot` passes a cloud's notice on to Ray, which then drains the node: nothing new starts there, and what
runs goes on. A trial moves by itself, at the end of its epoch (see `CheckpointedTrainable`).
"""

from typing import Any

import ray
from ray.exceptions import RayActorError

ANSWER_TIMEOUT_S = 2.0


class NodeLeavingError(RayActorError):
    """Ends a worker whose node leaves. Tune goes on elsewhere from the last checkpoint, and counts no failure."""

    def __init__(self, message: str = "its node is about to be taken away") -> None:
        super().__init__(error_msg=message, preempted=True)

    def __reduce__(self) -> tuple[type["NodeLeavingError"], tuple[str]]:
        return type(self), (self.error_msg,)


def node_is_leaving() -> bool:
    """Tell whether Ray drains the node that this worker runs on; False where nobody can say."""
    try:
        # Ray's public calls do not tell; its own Serve asks here. About 1 ms.
        worker: Any = ray._private.worker.global_worker
        draining = worker.gcs_client.get_draining_nodes(timeout=ANSWER_TIMEOUT_S)
        return bool(draining) and ray.get_runtime_context().get_node_id() in draining
    except Exception:  # no Ray, or a head that is away for a moment
        return False

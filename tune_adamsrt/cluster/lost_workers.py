"""How many workers a trial has lost, and how many are too many."""

from collections import Counter

MAX_LOST_WORKERS = 5  # a trial whose workers die more often than this between two checkpoints is given up


class LostWorkers:
    """Counts the workers that each trial has lost since its last checkpoint."""

    def __init__(self) -> None:
        self._lost: Counter[int] = Counter()

    def add(self, number: int) -> None:
        self._lost[number] += 1

    def forget(self, number: int) -> None:
        """Begin anew: a trial that got further is not what kills its workers."""
        self._lost.pop(number, None)

    def may_go_on(self, number: int) -> bool:
        return self._lost[number] <= MAX_LOST_WORKERS

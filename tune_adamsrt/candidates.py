"""Which candidates of a search are trained again, on which seeds, and which of them is chosen. Pure.

The choice looks at validation accuracies only; of the test set nothing comes in here but its results, afterwards.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tune_adamsrt.records import Confirmation, TrialRecord, TrialState
from tune_adamsrt.study import ListedRun

CONFIRMATION = re.compile(r"(?P<search>.+)\.(?P<seeds>\d+)-seeds\.confirm")


def confirmation_name(study_name: str, seeds: int) -> str:
    """Name the study that confirms a search. Another number of seeds is another confirmation."""
    return f"{study_name}.{seeds}-seeds.confirm"


def is_confirmation(name: str, *, of: str | None = None) -> bool:
    """Tell by its name whether a study confirms a search (`of` that name)."""
    match = CONFIRMATION.fullmatch(name)
    return match is not None and of in (None, match["search"])


def fresh_seeds(search_seed: int, count: int) -> list[int]:
    """Draw a confirmation's seeds from [2^31, 2^32); those of a search's trials lie below, so that none is shared."""
    draws = np.random.SeedSequence(search_seed, spawn_key=(1,)).generate_state(2 * count + 16) | np.uint32(1 << 31)
    return list(dict.fromkeys(draws.tolist()))[:count]


def listed_runs(candidates: Sequence[TrialRecord], seeds: Sequence[int]) -> list[ListedRun]:
    """List every candidate on every seed, all candidates on the first seed first."""
    return [
        ListedRun(
            candidate.hyper_parameters,
            seed=seed,
            origin=f"trial {candidate.number}, seed {index} of {len(seeds)}",
            confirms=candidate.number,
        )
        for index, seed in enumerate(seeds, start=1)
        for candidate in candidates
    ]


def choose_candidate(runs: Sequence[TrialRecord]) -> int | None:
    """Choose by the mean value over the seeds; of a search's trials that trained in full on every seed.

    Ties go to the lower mean validation loss, then to the earlier trial. One failed run rules a candidate out: what
    diverges on one seed of a few is no result to publish.

    Returns:
        The number of the search's trial; None where there is none.
    """
    by_candidate: dict[int, list[TrialRecord]] = {}
    for run in runs:
        assert run.confirms is not None
        by_candidate.setdefault(run.confirms, []).append(run)
    seeds = {run.seed for run in runs}
    eligible = {
        number: of_one
        for number, of_one in by_candidate.items()
        if {run.seed for run in of_one if run.state is TrialState.COMPLETE} == seeds
    }

    def rank(number: int) -> tuple[float, float, int]:
        of_one = eligible[number]
        # Rounded, so that equal means stay equal whatever the order of their summands.
        mean = round(float(np.mean([run.value for run in of_one])), 12)
        return mean, -round(float(np.mean([run.epochs[-1].valid_loss for run in of_one])), 12), -number

    return max(eligible, key=rank, default=None)


def build_confirmation(
    search: Mapping[int, TrialRecord], runs: Sequence[TrialRecord], tests: Mapping[int, Sequence[float]]
) -> Confirmation:
    """Put together what is known of a confirmation.

    Args:
        search: the search's trials by number.
        runs: of the confirmation, in any state.
        tests: test accuracies of the candidates that were tested.
    """
    listed = sorted(runs, key=lambda run: (run.confirms, run.seed))
    chosen = choose_candidate(listed)
    return Confirmation(
        candidate=None if chosen is None else search[chosen],
        runs=tuple(listed),
        test_accuracies=tuple(tests.get(chosen, ())) if chosen is not None else (),
        candidates=len({run.confirms for run in runs}),
        tested=max(1, len(tests)),
    )


def describe_failures(runs: Sequence[TrialRecord]) -> str:
    """Say in one line why no candidate could be confirmed."""
    failed = [run for run in runs if run.state is TrialState.FAILED]
    if not failed:
        return "no run trained in full"
    return f"{len(failed)} of {len(runs)} runs failed; {failed[0].origin}: {failed[0].reason}"

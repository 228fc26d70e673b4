"""The command line of `python -m tune_adamsrt.search`."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from adamsrt.optimizers import OPTIMIZERS
from adamsrt.precision import PRECISIONS
from tune_adamsrt.samplers import SAMPLERS

DESCRIPTION = """\
Search the hyper-parameters of an optimizer for a model on a dataset, on this machine or on a Ray cluster.

Every trial trains one configuration and is judged by its validation accuracy. The best are trained again on fresh
seeds; then the test set is read, once, for the one with the best mean. It goes to best_hyper_parameters.py and,
with its weights, to MLflow; every trial is in an Optuna study and in MLflow.
"""

EXAMPLES = """\
examples:
  python -m tune_adamsrt.search --setting resnet20-digits              real handwritten digits, minutes on a laptop
  python -m tune_adamsrt.search --setting resnet18-cifar100 --dry-run  what would run, and how much of it
  python -m tune_adamsrt.search --setting resnet20-digits --optimizer all  the table: each one tuned with equal epochs
  python -m tune_adamsrt.search --setting resnet20-cifar10 --limit-train-examples 2000 --epochs 3 --trials 4
"""

DEFAULT_OUTPUT = "runs"
DEFAULT_EXPORT = "best_hyper_parameters.py"
AUTO = "auto"  # of --trials-per-gpu

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", re.IGNORECASE)
SECONDS_PER = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m tune_adamsrt.search",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to search")
    what.add_argument(
        "--setting", action="append", metavar="NAME", help="model-dataset, or a YAML file of your own; repeatable"
    )
    what.add_argument(
        "--optimizer",
        action="append",
        metavar="NAME",
        help=f"repeatable; one of {', '.join(OPTIMIZERS)}, or all (default: adamsrt)",
    )
    what.add_argument(
        "--campaign",
        metavar="NAME",
        help="name of a comparison: every search gets the same total of epochs, one of that name goes on where it "
        "stands, and it ends with a table (default: a new one where there are several searches)",
    )
    what.add_argument("--list-settings", action="store_true", help="print the settings that come with it, and exit")
    what.add_argument("--list-studies", action="store_true", help="print the studies in the storage, and exit")
    what.add_argument("--dry-run", action="store_true", help="print what would run, and exit")

    budget = parser.add_argument_group("how much (whichever comes first)")
    budget.add_argument(
        "--trials", type=positive_int, metavar="N", help="configurations to try (default: the setting's)"
    )
    budget.add_argument(
        "--epochs", type=positive_int, metavar="N", help="full budget of a trial (default: the setting's)"
    )
    budget.add_argument(
        "--max-total-epochs",
        type=positive_int,
        metavar="N",
        help="epochs of all trials of a search together (default: no limit; in a campaign trials x epochs)",
    )
    budget.add_argument(
        "--time-budget", type=duration, metavar="TIME", help="90, 30m, 2h or 1d, from the start of this command"
    )
    budget.add_argument(
        "--let-finish",
        action="store_true",
        help="when time or total epochs are spent, train what runs to its end (default: stop it)",
    )
    budget.add_argument(
        "--limit-train-examples", type=positive_int, metavar="N", help="train on N examples only, for a quick look"
    )

    budget.add_argument(
        "--confirm-seeds",
        type=natural_int,
        metavar="N",
        help="train the best again on N fresh seeds, beyond the budgets above; 0: not at all (default: 3; "
        "5 in a campaign)",
    )
    budget.add_argument(
        "--confirm-candidates",
        type=positive_int,
        default=3,
        metavar="K",
        help="how many of the best are trained again (default: 3)",
    )

    how = parser.add_argument_group("how")
    how.add_argument("--sampler", default="tpe", metavar="NAME", help=f"one of {', '.join(SAMPLERS)} (default: tpe)")
    how.add_argument(
        "--scheduler",
        default="asha",
        choices=["asha", "promotion", "fifo"],
        help="asha stops poor trials early (asynchronous successive halving); promotion pauses them, and goes on with "
        "one that turns out to be among the best; fifo trains all in full (default: asha)",
    )
    how.add_argument(
        "--seed", type=natural_int, default=0, metavar="N", help="of the sampler and of all trials (default: 0)"
    )

    how.add_argument(
        "--first-points",
        choices=["published", "none"],
        help="published: try the paper's best values first; each counts as a trial (default: published; none in a "
        "campaign, since more is published for some optimizers than for others)",
    )
    how.add_argument(
        "--precision",
        default="fp32",
        choices=PRECISIONS,
        help="of all training and evaluation; results of another precision do not compare (default: fp32)",
    )
    how.add_argument(
        "--warm-start-from",
        metavar="STUDY",
        help="try the best points of an earlier study first; each counts as a trial",
    )

    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster: auto or HOST:PORT; local starts a new one on this machine "
        "(default: RAY_ADDRESS, else the cluster that `ray start` left running here, else local); "
        "http://HOST:8265 or ray://HOST submits the search to that cluster's head as a job",
    )
    where.add_argument(
        "--cluster",
        metavar="FILE",
        help="of `ray up`: submit the search to that cluster's head over SSH, follow its log, bring the results here",
    )
    where.add_argument(
        "--detach", action="store_true", help="submit it only; python -m tune_adamsrt.logs finds it again"
    )
    where.add_argument("--max-concurrent", type=positive_int, metavar="N", help="trials side by side (default: as fit)")
    where.add_argument("--cpus-per-trial", type=positive_float, metavar="N", help="default: the setting's")
    where.add_argument(
        "--gpus-per-trial",
        type=fraction,
        metavar="N",
        help="0.5 = two trials share a GPU; default: the setting's, 0 without GPUs",
    )
    where.add_argument(
        "--trials-per-gpu",
        type=slots_or_auto,
        metavar="N",
        help="N trials side by side in one process per GPU, for networks that leave it half idle; auto: as many as "
        "train fastest, by a minute of measuring (default: a process each)",
    )
    where.add_argument(
        "--no-cuda-graph",
        dest="cuda_graph",
        action="store_false",
        help="launch every step anew on a GPU instead of replaying a CUDA graph: slower, to find out what is wrong",
    )
    where.add_argument(
        "--max-on-demand-cost",
        type=positive_float,
        metavar="USD",
        help="where spot machines are refused, rent on-demand ones for so much in all; see cluster/gpu.yaml "
        "(default: none)",
    )
    where.add_argument(
        "--on-demand-after",
        type=duration,
        default=600.0,
        metavar="TIME",
        help="how long trials wait for a spot machine before that (default: 10m)",
    )

    files = parser.add_argument_group("where things are kept")
    files.add_argument(
        "--data-root",
        default="data",
        metavar="DIR",
        help="datasets; a missing one is downloaded, by each node; a shared folder or a bucket (s3://...) on a cluster "
        "(default: data)",
    )
    files.add_argument(
        "--output",
        default=DEFAULT_OUTPUT,
        metavar="DIR",
        help="studies and checkpoints; a shared folder or a bucket (s3://...) on a cluster (default: runs)",
    )
    files.add_argument(
        "--resume", action="store_true", help="go on with the newest study of this setting and optimizer in OUTPUT"
    )
    files.add_argument(
        "--study", metavar="NAME", help="name of the Optuna study; an existing one goes on (default: a new one)"
    )
    files.add_argument(
        "--study-storage", metavar="URL", help="journal file or database (default: OUTPUT/optuna.journal)"
    )
    files.add_argument(
        "--export",
        metavar="FILE",
        help="the best configuration is merged into it (default: best_hyper_parameters.py, where a run that is reduced "
        "by --epochs or --limit-train-examples replaces no entry)",
    )
    files.add_argument(
        "--no-report", action="store_true", help="no page, figures and tables at the end (default: OUTPUT/report/STUDY)"
    )
    files.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; a bad option ends the process with one line and exit code 2."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not (arguments.setting or arguments.list_settings or arguments.list_studies):
        parser.error("--setting is needed, for example --setting resnet20-digits (--list-settings shows all)")
    return arguments


def positive_int(text: str) -> int:
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return value


def natural_int(text: str) -> int:
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text}")
    return int(text)


def slots_or_auto(text: str) -> int | str:
    return AUTO if text.strip() == AUTO else positive_int(text)


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number >= 0, got {text}")
    return value


def positive_float(text: str) -> float:
    value = fraction(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text}")
    return value


def duration(text: str) -> float:
    """Seconds from `90`, `45s`, `30m`, `2h` or `1d`."""
    match = DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 90, 30m, 2h or 1d, got {text}")
    return float(match[1]) * SECONDS_PER[match[2].lower() if match[2] else None]

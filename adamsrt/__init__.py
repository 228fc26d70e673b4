"""AdamS, AdamSRT and SGD-MRT (arXiv:2006.13382): optimizers, models, data and one training loop."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamsrt.optimizers import AdamS, AdamSRT

__version__ = "0.1.0"
__all__ = ["AdamS", "AdamSRT", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("AdamS", "AdamSRT"):
        from adamsrt import optimizers

        return getattr(optimizers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

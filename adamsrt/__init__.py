"""AdamS, AdamSRT and SGD-MRT (arXiv:2006.13382): optimizers, models, data and one training loop."""

from adamsrt.optimizers import AdamS, AdamSRT

__version__ = "0.1.0"
__all__ = ["AdamS", "AdamSRT", "__version__"]

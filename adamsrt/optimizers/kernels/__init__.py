"""The steps as Triton kernels: one launch for all rows of a device, one program for each row, and one for all elements.

A program reads its row of weights, gradient and momentum once and writes weights and momentum once, 20 bytes per
parameter in float32. Rows that are too long for the registers, or not aligned, are read twice (AdamG: three times), the
second time from a cache. `fused` makes the table that says where the rows lie, and keeps the numbers on the device;
`count` puts the bias corrections into the table beforehand.
"""

import os

from adamsrt.optimizers.kernels.adam_g import adam_g
from adamsrt.optimizers.kernels.adam_srt import adam_srt
from adamsrt.optimizers.kernels.count import count
from adamsrt.optimizers.kernels.elements import adam, sgd
from adamsrt.optimizers.kernels.sgd_mrt import sgd_mrt

__all__ = ["INTERPRETED", "adam", "adam_g", "adam_srt", "count", "sgd", "sgd_mrt"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests

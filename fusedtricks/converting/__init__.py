"""Turns modules of ours into stock's and back: `to_stock`, `to_fused`, `stock_keys`; and what TorchScript sees of ours.

`parts` knows what our modules consist of, `singles` which are replaced one for one, `layers` has what `torch.nn` lacks,
`calls` finds who calls whom, `state` moves what a module holds.
"""

from . import scripting
from .to_fused import to_fused
from .to_stock import stock_keys, to_stock

__all__ = ["stock_keys", "to_fused", "to_stock"]

scripting.install()

"""The optimizers from SGD to AdamW for JAX, built from links you can swap.

The named optimizers and everything that acts on whole optimizers are here; they are those of `linkax.chains`. The links
are in `linkax.transforms`, and the exchange with PyTorch is in `linkax.chains.torch_interop`.

Example:
    >>> from linkax import adamw
    >>> from linkax.transforms import scale_by_nesterov
    >>> nesterov = adamw(1e-3).swap("scale_by_momentum", scale_by_nesterov(0.9))
"""

from importlib.metadata import version as _version

# Not by name: a second list of the names would have to be kept equal to the first.
from linkax.chains import *  # noqa: F403

__version__ = _version("linkax")

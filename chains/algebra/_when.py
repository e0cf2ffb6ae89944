"""Links that a named optimizer contains only for some arguments."""

from collections.abc import Callable
from typing import Any

import optax

from linkax.transforms._check import is_absent

from ._chain import Chain, chain


def when(wanted: Any, factory: Callable[..., optax.GradientTransformation], *args: Any, **kwargs: Any) -> Chain:
    """The link that `factory` builds, or no link at all if `wanted` is `None`, `False` or the plain number 0."""
    return chain() if wanted is None or is_absent(wanted) else chain(factory(*args, **kwargs))

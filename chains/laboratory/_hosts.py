"""What only the first host of several does, such as writing files."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

_ERRORS = (KeyboardInterrupt, OSError, ValueError)
_LENGTH = 4096  # bytes of a message; hosts exchange arrays, whose shapes must be known


def on_first_host(action: Callable[[], object]) -> None:
    """Runs an action on the first host while all others wait for it; what it raises there is raised on all hosts."""
    message, raised = np.zeros(_LENGTH, np.uint8), None
    if jax.process_index() == 0:
        try:
            action()
        except BaseException as error:  # Ctrl-C too: the others would wait for ever
            raised = error
            kind = next((at for at, known in enumerate(_ERRORS) if isinstance(error, known)), len(_ERRORS))
            text = (str(error) if kind < len(_ERRORS) else repr(error)).encode()[: _LENGTH - 1]
            message[: 1 + len(text)] = np.frombuffer(bytes([1 + kind]) + text, np.uint8)
    if jax.process_count() > 1:
        message = multihost_utils.process_allgather(message)[0]
    if raised is not None:
        raise raised
    if message[0]:
        kind, text = int(message[0]) - 1, bytes(message[1:]).rstrip(b"\0").decode(errors="replace")
        raise _ERRORS[kind](text) if kind < len(_ERRORS) else RuntimeError(f"sweep: the first host stopped: {text}")


def from_first_host(array: np.ndarray) -> np.ndarray:
    """The first host's values of an array that has the same shape on all hosts."""
    if jax.process_count() == 1:
        return array
    return multihost_utils.process_allgather(array)[0].astype(array.dtype)

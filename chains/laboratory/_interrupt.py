"""Ctrl-C during a sweep: the running chunk is finished and saved first."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextlib.contextmanager
def late_interrupts(late: bool) -> Iterator[Callable[[], None]]:
    """Delays the first Ctrl-C until the function that it yields is called, or to the end; a second one acts at once.

    Several hosts must call the function together: it stops all of them when one was interrupted. Outside the main
    thread, or where Ctrl-C is ignored or not Python's, nothing changes; nor if `late` is false.
    """
    asked = False
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, previous)
        with contextlib.suppress(RuntimeError):  # it came while another line was being written
            print("\nsweep: the running chunk is finished and saved first; Ctrl-C again stops at once", file=sys.stderr)

    def stop_if_asked() -> None:
        nonlocal asked
        flags = multihost_utils.process_allgather(np.array(asked)) if jax.process_count() > 1 else asked
        if np.any(flags):
            asked = False  # once
            raise KeyboardInterrupt

    late = late and threading.current_thread() is threading.main_thread()
    if not late or previous is None or previous is signal.SIG_IGN:
        yield stop_if_asked
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield stop_if_asked
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, previous)
    if asked:  # during the last steps, or where the function was not called any more
        raise KeyboardInterrupt

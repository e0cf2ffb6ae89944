"""A lock file: at most one sweep writes to a file, on one host or on several that share a folder."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import socket
import threading
from typing import Any

import psutil

try:
    import fcntl
except ImportError:  # not a POSIX system: locks of dead processes are removed by hand
    fcntl = None


class Lock:
    """A file next to `file`, with the name plus `.lock`, that says which process of which host works on it.

    The lock of a dead process is taken over if that can be known: the process is known by its number and its start, and
    the host by its name, its identity and its boot.
    """

    def __init__(self, file: pathlib.Path):
        self._file, self._path = file, file.with_name(file.name + ".lock")
        self._owner = json.dumps({"process": os.getpid(), "start": _start(os.getpid()), **_this_host()})
        while not (self._create() or self._take_over()):
            pass  # another process removed its lock in between

    def release(self) -> None:
        """Removes the lock, unless someone else has removed it and another sweep has started."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.read_text(encoding="utf-8") == self._owner:
                self._path.unlink()
                for leftover in self._path.parent.glob(glob.escape(self._path.name) + ".*.new"):
                    leftover.unlink(missing_ok=True)

    def _create(self) -> bool:
        # Written first and named then: a process that is killed in between leaves no lock without an owner.
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}-{threading.get_ident()}.new")
        try:
            new.write_text(self._owner, encoding="utf-8")
        except BaseException:  # such as a full disk
            new.unlink(missing_ok=True)
            raise
        try:
            os.link(new, self._path)
        except FileExistsError:
            return False
        except FileNotFoundError:  # another process has just removed what others had left
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return self._create_in_place()
        finally:
            new.unlink(missing_ok=True)
        return True

    def _create_in_place(self) -> bool:
        """Creates it where files cannot have two names."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(self._owner)
        except BaseException:  # such as a full disk
            self._path.unlink()
            raise
        return True

    def _take_over(self) -> bool:
        """Whether it took over the lock of a dead process; raises if the process may be alive."""
        try:
            stream = self._path.open("r+", encoding="utf-8")
        except FileNotFoundError:
            return False
        with stream:
            found = stream.read()
            try:
                owner = json.loads(found)
                who = f"process {owner['process']} on {owner['host']}"
            except (ValueError, TypeError, KeyError):
                owner, who = None, "another process that has only just started, or was killed while it did,"
            if owner is None or _may_be_alive(owner) or fcntl is None:
                raise self._held(who)
            # Of several processes that find the same dead owner, one writes itself into the file. All of them are on
            # this host, so it is enough that this works within a host, also on a network file system.
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise self._held("another process that has only just started") from None
            with contextlib.suppress(FileNotFoundError):
                stream.seek(0)
                if os.path.samestat(os.fstat(stream.fileno()), self._path.stat()) and stream.read() == found:
                    stream.seek(0)
                    stream.write(self._owner)
                    stream.truncate()
                    return True
        return False

    def _held(self, who: str) -> ValueError:
        return ValueError(
            f"sweep: file must not be in use by another sweep, got {str(self._file)!r}, which {who} works on; if that "
            f"process is gone, remove {str(self._path)!r}"
        )


def remove_dead_lock(file: pathlib.Path) -> None:
    """Removes the lock of a process that was killed after it had finished."""
    if file.with_name(file.name + ".lock").exists():
        with contextlib.suppress(ValueError, OSError):  # it is alive, or the folder cannot be written
            Lock(file).release()


def _this_host() -> dict[str, Any]:
    """The host: its name, its identity, its boot, and whose process numbers it counts (containers count their own)."""
    host: dict[str, Any] = {"host": socket.gethostname()}
    for name, path in (("machine", "/etc/machine-id"), ("boot", "/proc/sys/kernel/random/boot_id")):
        with contextlib.suppress(OSError):
            host[name] = pathlib.Path(path).read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        host["processes"] = os.readlink("/proc/self/ns/pid")
    return host


def _start(process: int) -> float | None:
    """When a process started; `None` without such a process, or if it has ended and only its parent has not noticed.

    On Linux in ticks since the boot, which no change of the clock moves.
    """
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *numbers = fields.rpartition(")")[2].split()
        return None if state in "ZX" else float(numbers[18])
    except OSError:
        pass
    try:
        return psutil.Process(process).create_time()
    except psutil.Error:
        return None


def _may_be_alive(owner: dict[str, Any]) -> bool:
    here = _this_host()
    if owner.get("boot") != here.get("boot"):  # the same machine, after a restart
        names = ("host", "machine")
        return not all(here.get(name) and owner.get(name) == here[name] for name in names)
    if any(owner.get(name) != here.get(name) for name in here):
        return True
    return _start(owner["process"]) == owner.get("start")

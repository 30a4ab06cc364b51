"""Runs one command and ends it when its own stdin closes: so nothing outlives a parent that died, even by SIGKILL.

Started as a script of its own, with nothing but the standard library: it shall be there in milliseconds and never fail.
"""

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TOLD_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def guarded(
    command: list[str],
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    grace_seconds: float = 10,
    user: tuple[int, int] | None = None,
) -> list[str]:
    """The command line that runs `command` (a full path and arguments) under a guard, as `user` (uid, gid) if given.

    Start it with stdin=PIPE and start_new_session=True. When that pipe closes, or on SIGTERM, the command gets
    `stop_signal`, and SIGKILL with all its process group after `grace_seconds`. The exit status is the command's own.
    """
    uid, gid = user or (-1, -1)
    options = [str(int(stop_signal)), str(grace_seconds), str(uid), str(gid)]
    return [sys.executable, "-I", "-S", __file__, *options, *command]


def main(stop_signal: str, grace_seconds: str, uid: str, gid: str, *command: str) -> int:
    """Run the command to its end and return its exit status, 128 + the signal's number if a signal ended it."""
    ordered, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in (*TOLD_TO_STOP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    pid = _start(command, int(uid), int(gid))
    status = _wait(pid, ordered, stop_signal=int(stop_signal), grace_seconds=float(grace_seconds))
    _kill_group(pid)
    return status if status >= 0 else 128 - status


def _start(command: tuple[str, ...], uid: int, gid: int) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (*TOLD_TO_STOP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        if uid >= 0:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        _die_with_parent(guard)  # after setuid, which forgets it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the guard dies without having ended it (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def _wait(pid: int, ordered: int, *, stop_signal: int, grace_seconds: float) -> int:
    lifeline = sys.stdin.fileno()
    watched, kill_at = [lifeline, ordered], None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill_group(pid)
        ready, _, _ = select.select(watched, [], [], None if kill_at is None else 1)
        signals = os.read(ordered, 512) if ordered in ready else b""
        parent_died = lifeline in ready and not os.read(lifeline, 512)
        if parent_died:
            watched.remove(lifeline)
        if kill_at is None and (parent_died or any(number in signals for number in TOLD_TO_STOP)):
            os.kill(pid, stop_signal)
            kill_at = time.monotonic() + grace_seconds


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody left; macOS says the latter of a group of zombies
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

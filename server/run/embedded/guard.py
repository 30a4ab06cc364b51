"""Runs one command and stops it when its own stdin closes. So no command outlives our parent, even after SIGKILL.

This runs as a script, with only the standard library, so that it starts within milliseconds.
"""

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def guarded(
    command: list[str],
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    grace_seconds: float = 10,
    user: tuple[int, int] | None = None,
) -> list[str]:
    """Return the command line that runs `command` (a full path and arguments) under a guard, as `user` (uid, gid).

    Start it with stdin=PIPE and start_new_session=True. When that pipe closes, or on SIGTERM, the command gets
    `stop_signal`. After `grace_seconds` its process group gets SIGKILL. The exit status is that of the command.
    """
    uid, gid = user or (-1, -1)
    options = [str(int(stop_signal)), str(grace_seconds), str(uid), str(gid)]
    return [sys.executable, "-I", "-S", __file__, *options, *command]


def main(stop_signal: str, grace_seconds: str, uid: str, gid: str, *command: str) -> int:
    """Run the command until it exits. Return its exit status, or 128 + the number of the signal that ended it."""
    # Python writes each signal's number into this pipe, so that `select` can wait for signals and stdin together.
    signals_in, signals_out = os.pipe()
    os.set_blocking(signals_out, False)
    signal.set_wakeup_fd(signals_out, warn_on_full_buffer=False)
    for number in (*STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    pid = _start(command, int(uid), int(gid))
    status = _wait(pid, signals_in, stop_signal=int(stop_signal), grace_seconds=float(grace_seconds))
    _kill_group(pid)
    return status if status >= 0 else 128 - status


def _start(command: tuple[str, ...], uid: int, gid: int) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        if uid >= 0:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        _kill_when_guard_dies(guard)  # after setuid, which resets it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _kill_when_guard_dies(guard: int) -> None:
    """Let the kernel send SIGKILL to this process when the guard dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:  # it died before prctl
        os._exit(127)


def _wait(pid: int, signals_in: int, *, stop_signal: int, grace_seconds: float) -> int:
    """Wait until the command exits, and stop it when stdin closes or a stop signal arrives."""
    stdin = sys.stdin.fileno()
    watched, kill_at = [stdin, signals_in], None
    while True:
        exited, status = os.waitpid(pid, os.WNOHANG)
        if exited:
            return os.waitstatus_to_exitcode(status)
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill_group(pid)
        ready, _, _ = select.select(watched, [], [], None if kill_at is None else 1)
        signals = os.read(signals_in, 512) if signals_in in ready else b""
        parent_died = stdin in ready and not os.read(stdin, 512)
        if parent_died:
            # A closed stdin is always readable, so `select` would no longer wait.
            watched.remove(stdin)
        if kill_at is None and (parent_died or any(number in signals for number in STOP_SIGNALS)):
            os.kill(pid, stop_signal)
            kill_at = time.monotonic() + grace_seconds


def _kill_group(pid: int) -> None:
    # The group may be gone. For a group of zombies, macOS raises PermissionError.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

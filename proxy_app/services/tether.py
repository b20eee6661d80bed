"""Run a command that dies with its parent: `python -m proxy_app.services.tether SIGNAL PARENT_PID COMMAND...`

Linux sends the signal to this process when the thread that started it ends (prctl, PR_SET_PDEATHSIG); it survives
the exec. A parent that died before that was arranged is noticed by its pid. Elsewhere the command simply runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tether(death_signal: signal.Signals, parent: int) -> None:
    """Tie this process to its parent."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), death_signal)


def main(argv: list[str]) -> None:
    tether(signal.Signals[argv[0]], int(argv[1]))
    os.execvp(argv[2], argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])

"""Runs a program that ends when its parent does: ``python tether.py PARENT_PID PROGRAM ARGS…``.

A supervisor that is killed cannot stop its parts; the kernel does it then, with SIGTERM (Linux; elsewhere
the next start finds the processes by the ids that were recorded). Becomes the program: same process id.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != int(sys.argv[1]):  # it died before the line above
            sys.exit("the parent process is gone")
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the caller's own command

"""How the processor is used: settings that PyTorch's libraries read once, as they are loaded, and its cores.

`lenet.cli`, which every program here begins with, imports this module before anything imports PyTorch.
"""

import os

# A thread that has done its part of an operation waits for the others by spinning, by default for longer than any of
# LeNet's operations takes. While another program is at work, it so holds the core that the thread it waits for needs,
# and a training takes several times as long. After 1,000 turns, some 20 microseconds, it sleeps instead (GNU,
# "libgomp", GOMP_SPINCOUNT). `python benchmarks/busy.py` measures both. A choice of the user's own is left alone.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"


def cores() -> int:
    """The cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

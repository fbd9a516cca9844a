"""Settings of the CPU that PyTorch's libraries read once, when they are loaded, and the number of cores.

Every program here first imports `lenet.cli`, which imports this module before anything imports PyTorch.
"""

import os

# A thread that has finished its part of an operation spins while it waits for the others, by default for longer than
# any operation of LeNet takes. If another program is running, the spinning thread may hold the core that the others
# need, and a training takes several times as long. So let it sleep after 1,000 turns, some 20 microseconds (GNU,
# "libgomp", GOMP_SPINCOUNT). `python benchmarks/busy.py` measures both. A user's own setting takes precedence.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"


def cores() -> int:
    """The number of cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

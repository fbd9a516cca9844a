"""Settings of the CPU that PyTorch's libraries read once, when they are loaded, and the number of cores.

Every program here first imports `lenet.cli`, which imports this module before anything imports PyTorch. The stages that
compute with PyTorch call `set_arithmetic` before they import it.
"""

import os
import platform
import sys
from pathlib import Path

from lenet.errors import InputError

# A thread that has finished its part of an operation spins while it waits for the others, by default for longer than
# any operation of LeNet takes. If another program is running, the spinning thread may hold the core that the others
# need, and a training takes several times as long. So let it sleep after 1,000 turns, some 20 microseconds (GNU,
# "libgomp", GOMP_SPINCOUNT). `python benchmarks/busy.py` measures both. A user's own setting takes precedence.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"

# By default, PyTorch and MKL choose their kernels by processor, and with them the order in which they add.
#
# PyTorch compiles its own kernels for several instruction sets. What those for AVX2 do is defined by IEEE 754, so their
# results have the same bits wherever they run. (PyTorch, aten/src/ATen/native/cpu/README.md.)
#
# MKL, which multiplies matrices, can keep to one instruction set. Its strict mode is to give the same bits with any
# number of threads too. Intel promises this for its own processors alone ("oneMKL developer guide for Linux",
# "Obtaining numerically reproducible results"). `lenet.network.products` does what AMD's processors need besides.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2,STRICT"}

PORTABLE_THREADS = 2
"""The most threads with which products have the same bits on every make of processor (`lenet.network.products`)."""


def set_arithmetic(arithmetic: str) -> None:
    """Make PyTorch, before it is imported, use the `portable` or the `native` arithmetic of the CPU (train.arithmetic).

    With `portable`, results have the same bits on every x86-64 processor that has AVX2. On other processors, and with
    `native`, the libraries choose, unless the user has set their variables.

    Raises
    ------
    InputError
        The user has set a variable to something that is not portable.
    """
    if is_portable(arithmetic):
        for name, value in PORTABLE.items():
            if os.environ.setdefault(name, value) != value:
                raise InputError(
                    f"{name} is {os.environ[name]} in the environment, but train.arithmetic portable needs {value}; "
                    f"unset {name}, or set train.arithmetic to native"
                )
    elif arithmetic == "portable":
        print(
            "warning: train.arithmetic portable needs an x86-64 processor with AVX2; "
            "on this one the results may differ in the last digits",
            file=sys.stderr,
        )


def is_portable(arithmetic: str) -> bool:
    """Whether a computation with this train.arithmetic gives the same bits here as on other x86-64 processors."""
    return arithmetic == "portable" and _has_avx2()


def _has_avx2() -> bool:
    """Whether this is an x86-64 processor with AVX2. PyTorch takes `avx2` at its word, and would crash without."""
    about = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not about.exists():
        return False
    flags = [line for line in about.read_text().splitlines() if line.startswith("flags")]
    return bool(flags) and {"avx2", "fma"} <= set(flags[0].split())


def cores() -> int:
    """The number of cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

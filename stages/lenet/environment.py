"""What outside the repository may change how results are rounded: the device, the machine and the packages."""

import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from lenet.errors import InputError
from lenet.processor import PORTABLE, is_portable

# Those that compute or draw something in an output.
PACKAGES = ("matplotlib", "numpy", "pandas", "pillow", "scikit-learn", "torch")

AVAILABLE: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}


def find_device(name: str) -> torch.device:
    """The device of that name; for `auto` the first that this machine has of CUDA, MPS and the CPU.

    CUDA is queried only if it may be used, because the query initialises it.

    Raises
    ------
    InputError
        The machine has no such device.
    """
    if name == "auto":
        name = next(device for device, is_available in AVAILABLE.items() if is_available())
    elif not AVAILABLE[name]():
        raise InputError(f"train.device is {name}, which this machine does not have; use auto or cpu")
    return torch.device(name)


def be_deterministic() -> None:
    """Make PyTorch use deterministic algorithms, and fail where it has none.

    On the CPU these are the default ones. On CUDA, cuBLAS needs a fixed workspace, set before the device is first used
    (PyTorch, "Reproducibility").
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as use_deterministic_algorithms(True), which imports PyTorch's compiler and so takes a second.
    torch.set_deterministic_debug_mode("error")


def environment(device: torch.device, arithmetic: str) -> dict[str, str]:
    """Everything outside the repository that the bytes of the outputs may depend on: what -> its name or version.

    `device` is the one that the network is trained on, `arithmetic` train.arithmetic. Where all entries are the same,
    two runs of the same sources and parameters give the same bytes. Where one differs, the bytes may still be equal:
    the processor matters only if the arithmetic is not portable, the C library hardly ever.
    """
    if is_portable(arithmetic) and torch.backends.mkl.is_available():
        computed = "portable"
    else:
        chosen = [f"{name}={os.environ[name]}" for name in PORTABLE if name in os.environ]
        computed = ", ".join(["native", torch.backends.cpu.get_cpu_capability(), *chosen])
    accelerators = {"cuda": torch.cuda.get_device_name, "mps": lambda: "MPS", "cpu": lambda: "none"}
    return {
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'its own C library'}",
        "processor": _processor(),
        "arithmetic": computed,
        "accelerator": accelerators[device.type](),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "torch": torch.__version__,  # With its build, for example 2.14.1+cpu.
    }


_NUMBERS = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")  # x86's, then ARM's.


def _processor() -> str:
    """The processor's name and, where the system has them, the numbers that tell its generations apart."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return platform.processor() or "unknown"
    facts = dict(line.split(":", 1) for line in about.read_text().split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    numbers = [f"{key} {named[key]}" for key in _NUMBERS if key in named]
    return ", ".join([named.get("model name", platform.machine()), *numbers])

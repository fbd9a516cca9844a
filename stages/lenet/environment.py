"""What of a machine and its packages decides how a result is rounded: the device, and what is recorded of the rest."""

import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from lenet.errors import InputError

# Those that compute a number or draw a pixel of an output.
PACKAGES = ("matplotlib", "numpy", "pandas", "pillow", "scikit-learn", "torch")

AVAILABLE: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}


def find_device(name: str) -> torch.device:
    """The device of that name; for `auto` the first of CUDA, MPS and the CPU that this machine has.

    Only a device that may be used is asked for, because to ask for CUDA is to start it.

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
    """Have PyTorch use the algorithms that give the same bits each time, and fail where it has none.

    On a processor they are the usual ones. CUDA's libraries need their workspace fixed before the device is first used
    (PyTorch, "Reproducibility").
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as use_deterministic_algorithms(True), which imports PyTorch's compiler: a second of start-up.
    torch.set_deterministic_debug_mode("error")


def environment(device: torch.device) -> dict[str, str]:
    """Everything outside of the repository on which the bytes of the outputs may depend: what -> its name or version.

    `device` is the one that the network is trained on. Two runs of the same source and parameters give the same bytes
    where all of it is the same. A different entry need not show: the processor does (its caches and instructions decide
    in which order sums are taken), the C library hardly ever.
    """
    accelerators = {"cuda": torch.cuda.get_device_name, "mps": lambda: "MPS", "cpu": lambda: "none"}
    return {
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'its own C library'}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": accelerators[device.type](),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "torch": torch.__version__,  # With its build, 2.14.1+cpu, say.
    }


_NUMBERS = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")  # x86's, then ARM's.


def _processor() -> str:
    """The processor's name and, where the system tells, the numbers that tell its generations apart."""
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

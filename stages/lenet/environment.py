"""What of a machine and its packages decides how a result is rounded."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

# Those that compute a number or draw a pixel of an output.
PACKAGES = ("matplotlib", "numpy", "pandas", "pillow", "scikit-learn", "torch")


def environment() -> dict[str, str]:
    """Everything outside of the repository on which the bytes of the outputs may depend: what -> its name or version.

    Two runs of the same source and parameters give the same bytes where all of it is the same. A different entry need
    not show: the processor does (its caches and instructions decide in which order sums are taken), the C library
    hardly ever.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'its own C library'}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
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

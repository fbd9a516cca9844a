"""What the stages share. Each subpackage imports only those below it, which `make lint` checks.

experiments   presets, DVC's experiments, the zoo, verification
results       evaluation, figures
training      the loop, the optimiser, augmentation, averaged weights, checkpoints
network       LeNet, its quick form for processors, its description, the model file
data          the data sets, mirrors, IDX files, tensors

Below these, modules: `params`, `files`, `environment`, `processor`, `errors` and `cli`, the command lines' common part.
"""

import sys
from importlib.util import find_spec

# DVC runs a stage with whatever `python` comes first: without the environment activated, not this project's.
if sys.version_info < (3, 11) or not find_spec("typer"):
    sys.exit(
        f"error: {sys.executable} is not the Python of this project's environment; activate it, "
        "`source .venv/bin/activate`, and run this again"
    )

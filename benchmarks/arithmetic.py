"""Imported before PyTorch: its arithmetic is to be that of the stages, or native if the last argument begins so.

The last argument of `steps.py` is the way that it times.
"""

import sys

from lenet.processor import set_arithmetic

set_arithmetic("native" if sys.argv[-1].startswith("native") else "portable")

"""Imported before PyTorch by what computes with it: sets the stages' arithmetic, or the native for ways so called."""

import sys

from lenet.processor import set_arithmetic

set_arithmetic("native" if sys.argv[-1].startswith("native") else "portable")

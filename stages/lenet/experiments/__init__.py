"""Experiments that DVC runs and records: presets, all of them at once, and the committed results once more."""

"""Experiments that DVC runs and records: one preset, all presets, and the verification of the committed results."""

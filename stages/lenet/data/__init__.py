"""The data sets, from their published files to tensors."""

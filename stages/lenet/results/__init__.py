"""What is reported of a trained network: its metrics and its pictures."""

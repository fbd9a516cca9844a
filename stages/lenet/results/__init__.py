"""What is said of a trained network: its measures and its pictures."""

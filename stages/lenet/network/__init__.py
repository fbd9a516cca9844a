"""The networks, and how they are computed."""

"""Several processes that are one run: how they meet, keep pace, and end together."""

"""A local step on one core: what XLA makes of it, and PyTorch."""

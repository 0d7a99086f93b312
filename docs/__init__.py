"""The documentation's own code: what is generated from docstrings and logs."""

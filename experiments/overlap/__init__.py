"""The overlap of communication and computation, measured on a slow network."""

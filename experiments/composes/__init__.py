"""Which optimizers of optax a round takes, and what to know of them."""

"""What the theory promises, and what is measured."""

"""What others published, and what this library gives in their setting."""

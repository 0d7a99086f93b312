"""Training through faults: what a restart of all processes loses, and how long."""

"""What studies share to measure workers that are processes on a slow network."""

"""Long runs: what they hold of memory, files and threads, and how fast they stay."""

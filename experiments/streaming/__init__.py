"""Is a streamed exchange as good as a whole one? Accuracy, drift, seconds."""

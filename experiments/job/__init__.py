"""What the main job is made of: where its workers are, what it keeps and shows."""

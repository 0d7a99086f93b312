"""The main job on links that are fifty times slower."""

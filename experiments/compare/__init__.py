"""The whole family of algorithms on one small problem."""

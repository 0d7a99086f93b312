"""Unequal workers, measured: how shares and delays help against slow workers."""

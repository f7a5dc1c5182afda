"""The benchmark: the only place where time is measured. Nothing here asserts a time."""

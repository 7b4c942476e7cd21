"""Conditions of nodes, for tests that make calls in their own process."""


class Here:
    """Conditions under which calls are made in this process."""

    def __init__(self, *faults):
        self.faults = list(faults)

    def look(self, _):
        return self.faults

    def call(self, fn, *args, **kwargs):
        return fn(*args, **kwargs)

"""A table of a paper beside measured values: its requirements, comparability, and verdicts."""

"""A table of a paper beside what is measured here: what it needs, if both can be compared, and the verdict."""

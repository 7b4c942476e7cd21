"""The embedded networks and data, the published networks by name, and the reading of weights."""

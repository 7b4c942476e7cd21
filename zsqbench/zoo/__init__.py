"""The embedded networks and data, the published networks by name, and how weights are read."""

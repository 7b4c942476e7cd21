"""Two methods side by side, image by image."""

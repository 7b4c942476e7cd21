"""One command makes a file for deployment from a network. It searches a few data-free pipelines without labels."""

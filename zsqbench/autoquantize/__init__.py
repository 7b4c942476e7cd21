"""One command from a network to a model that ships: a small search over data-free pipelines, judged without labels."""

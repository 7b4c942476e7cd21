"""An example of a package with methods for zsqbench: each module is a plugin, which pyproject.toml names."""

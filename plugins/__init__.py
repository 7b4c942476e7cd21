"""Methods that come with zsqbench, one file for each paper, found through entry points as other plugins are."""

"""The methods that come with zsqbench: one file a paper, found through entry points as a stranger's are."""

"""What leaves zsqbench for other tools."""

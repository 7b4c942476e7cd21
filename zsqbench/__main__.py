"""`python -m zsqbench` is the command `zsqbench`."""

from zsqbench.cli import run_command

if __name__ == "__main__":
    run_command()

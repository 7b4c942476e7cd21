"""`python -m zsqbench` is the command `zsqbench`."""

from zsqbench.cli import main

if __name__ == "__main__":
    main()

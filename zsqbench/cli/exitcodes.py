"""The exit codes that belong to no error; those of errors are in errors.py, and `zsqbench --help` names all."""

EXIT_FAILED_CELLS = 1
EXIT_BLOCKED = 1
EXIT_GATE = 1
EXIT_CONFLICT = 1
EXIT_INTERNAL = 3
EXIT_SIGNAL = 128
"""Plus the number of the signal that ended a command: 130 for SIGINT (Ctrl-C), 143 for SIGTERM, 129 for SIGHUP."""

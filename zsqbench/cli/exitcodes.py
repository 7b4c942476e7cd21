"""Exit codes that belong to no error. The exit codes of errors are in errors.py; `zsqbench --help` names all."""

EXIT_FAILED_CELLS = 1
EXIT_BLOCKED = 1
EXIT_GATE = 1
EXIT_CONFLICT = 1
EXIT_INTERNAL = 3
EXIT_SIGNAL = 128
"""The number of the signal that ended a command is added: 130 SIGINT (Ctrl-C), 143 SIGTERM, 129 SIGHUP."""

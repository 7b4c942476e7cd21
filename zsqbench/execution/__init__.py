"""How a suite is run: the plan, the loop in the parent process, the engines, and a step in a worker."""

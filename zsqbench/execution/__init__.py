"""How a suite is run: the plan, the loop in the parent process, the engines, and what a worker does of a step."""

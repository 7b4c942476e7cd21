"""The engine `slurm`: groups of steps are jobs of a Slurm cluster whose nodes see one home folder."""

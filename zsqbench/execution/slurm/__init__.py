"""The engine `slurm`: groups of steps are jobs of a Slurm whose nodes see one home folder."""

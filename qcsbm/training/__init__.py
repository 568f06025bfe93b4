"""The training loop, its checkpoints, its processes, and checkpoints from outside."""

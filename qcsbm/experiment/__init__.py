"""An experiment file as a whole: read, checked, and split into the specifications of its jobs.

Nothing here imports torch, so that a dry run stays fast."""

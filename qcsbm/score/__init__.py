"""Score models, the SDE that they are trained under, and the loss of that training."""

"""From noise to samples and from samples to likelihoods: samplers, and the ODE solver of both."""

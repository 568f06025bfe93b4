"""From noise to samples, and from samples to likelihoods.

A module for each type of sampler (`qcsbm.schema.samplers`), the likelihood, and the ODE solver.
"""

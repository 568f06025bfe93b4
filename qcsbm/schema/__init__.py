"""Closed, typed models of all that an experiment file can say. Nothing here imports torch."""

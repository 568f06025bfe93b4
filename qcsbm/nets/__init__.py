"""The networks whose output a score model divides by the noise scale."""

"""The paper's motivational examples: small enough to be computed exactly on a CPU."""

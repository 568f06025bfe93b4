"""How far a vector field is from a gradient: Asym, NAsym, and products with its Jacobian."""

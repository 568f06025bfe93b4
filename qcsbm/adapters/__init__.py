"""Models of other libraries, and functions of one's own, as vector fields."""

"""The audit of any vector field: what is asked, what is reported, and how two compare."""

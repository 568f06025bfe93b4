"""Measures of sample quality, on features and class logits of generated and real images."""

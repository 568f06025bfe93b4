"""Datasets as uint8 arrays of training and test images, with labels and a description."""

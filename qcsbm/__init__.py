"""Benchmark of the conservative property of score-based generative models.

The modules follow "On Investigating the Conservative Property of Score-Based Generative
Models" (Chao, Sun, Cheng, Lee; ICML 2023; https://arxiv.org/abs/2209.12753), called
"the paper" throughout.
"""

__version__ = "0.1.0"

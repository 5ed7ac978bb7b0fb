"""Learning a reward model from comparisons as they arrive (arXiv 2502.07193)."""

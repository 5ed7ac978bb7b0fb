"""Paired, seeded comparisons of GRPO with GRPOVI, GRPO with reward variance increase (arXiv 2505.23247)."""

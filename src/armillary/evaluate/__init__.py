"""Examinations of a model: scores with intervals, paired comparisons, and model-written code in a sandbox."""

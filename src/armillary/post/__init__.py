"""Post-training: verified synthetic data, supervised fine-tuning, preference and merging."""

"""bpt_core computes: frozen Vision Transformers, prompts, tuning, prediction. No environment, no customers."""

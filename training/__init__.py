"""Fit and judge MOON2.0 encoders: collator, losses, Trainer, evaluation, recipes and the `moon2` command."""

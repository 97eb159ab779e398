"""The best model of a study, used: prediction, export, model card."""

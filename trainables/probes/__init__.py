"""Probes: measures of a frozen encoder, by accuracy (kNN, linear), CKA and maps."""

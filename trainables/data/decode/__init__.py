"""Decoding: one file -> one square array. Images of any kind, masks as class indices, both fitted the same way."""

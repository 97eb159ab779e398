"""Whether data serve a stage, and what of them cannot be used."""

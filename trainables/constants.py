"""Numbers that the driver, the workers and the pages share; no import, so that anything may import it."""

IGNORE = 255  # mask index that losses and metrics do not count
MIN_CKA_BATCH = 4  # images of a batch for which the unbiased estimate of CKA is defined

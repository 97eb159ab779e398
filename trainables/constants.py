"""Numbers and names that the driver, the workers and the pages share; no import, so that anything may import it."""

IGNORE = 255  # mask index that losses and metrics do not count
CONTEXT = 0.8e9  # bytes of a process with CUDA and its libraries, before any tensor; outside of torch's allocator
MIN_CKA_BATCH = 4  # images of a batch for which the unbiased estimate of CKA is defined
RESUMED = "resumed"  # key of a training's report that says where it goes on, before its first step

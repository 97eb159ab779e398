"""Files that a stage leaves in its folder, by name: written by the loops, read by the store, results and the driver.

Imports nothing, so that the driver knows them without torch.
"""

WEIGHTS = "model.safetensors"
HISTORY = "history.json"  # the learning curve
NOTES = "notes.json"  # which images were used for what, classes, sizes
STATE = "checkpoint.pt"  # the resumable state of an attempt, dropped when the stage finishes
CONTINUE = "continue.pt"  # the state at the end of a training, from which a longer one continues
TEST_IMAGES = "test_images.npz"  # images (N,); counts (N, classes, 3): right, true and predicted pixels at `size`
MAPS = "maps.npz"  # of a probe: activation or feature maps of some images

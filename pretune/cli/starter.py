"""`pretune init`: a commented starter study for one's own folders."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import yaml

TEMPLATE = """\
# A Pretune study. `pretune plan {file}` shows what it would run, `pretune run {file}` runs it.
study: {name}
question: Does pretraining help, and should the encoder be frozen?

data:
  mine:
    dataset: image-mask-folder      # pairs of files with equal stems, e.g. photos/a.jpg and labels/a.png
    root: {root}
    images: {images}
    masks: {masks}                  # pixel value 0 is the first class, 1 the second, ...
    classes: [{classes}]
    # ignore: 255                   # a mask value left out of losses and scores
    cache_size: 128                 # px; images are decoded once to this square
    on_error: fail                  # or skip: leave bad files out and record which
    split: {{test: 0.2, val: 0.1, seed: 0}}

model: {{name: unet, widths: [32, 64, 128, 256]}}

pretrain:                           # without labels, on the training images
  data: mine
  method: {{name: simclr, temperature: 0.2}}
  views: {{size: 64, crop: [0.2, 1.0], color_jitter: 0.8, gray: 0.2}}
  optimizer: {{name: adam, lr: 1.0e-3}}
  batch_size: 128
  epochs: 50

finetune:
  data: mine
  size: 128                         # px
  labels: all                       # or 10%, or a count such as 74
  transfer: encoder                 # none | encoder
  freeze: none                      # none | encoder
  loss: dice                        # dice | cross-entropy | dice+cross-entropy
  optimizer: {{name: adam, lr: 1.0e-3}}   # a range in place of a value is tuned: lr: {{log_uniform: [1.0e-4, 1.0e-2]}}
  batch_size: 16
  epochs: 30

factors:                            # what the question is about; all combinations are the cells of the table
  start:
    random: {{finetune.transfer: none}}
    pretrained: {{finetune.transfer: encoder}}
    pretrained and frozen: {{finetune.transfer: encoder, finetune.freeze: encoder}}
  labels: {{finetune.labels: [all, 10%]}}

seeds: {{search: 1, report: 3}}
# tune: {{sampler: tpe, trials: 20}}  # only where there are ranges
report: {{rows: start, columns: labels, metrics: [test/jaccard], baseline: {{start: random}}}}
scales:
  small: {{pretrain.epochs: 2, finetune.epochs: 2, data.mine.limit: 200}}   # pretune run {file} --scale small
"""


def starter(name: str, images: Path | None, masks: Path | None, classes: str | None) -> str:
    """The text of a starter study; folders that are not given stand as examples to be changed."""
    root, image_folder, mask_folder = _folders(images, masks)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "my-study"
    names = ", ".join(quoted(part.strip()) for part in (classes or "background, object").split(","))
    return TEMPLATE.format(
        file=f"{name}.yaml",
        name=quoted(name),
        root=quoted(root),
        images=quoted(image_folder),
        masks=quoted(mask_folder),
        classes=names,
    )


def quoted(text: str) -> str:
    """As YAML that reads as this text: quoted unless it is plain letters, which `no`, `1` and `a: b` are not."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _folders(images: Path | None, masks: Path | None) -> tuple[str, str, str]:
    """The common root, and both folders below it."""
    if images is None or masks is None:
        return (str(images.parent) if images else "path/to/my-data"), (images.name if images else "images"), "masks"
    both = images.resolve(), masks.resolve()
    root = Path(os.path.commonpath([folder.parent for folder in both]))
    return str(root), *(str(folder.relative_to(root)) for folder in both)  # type: ignore[return-value]

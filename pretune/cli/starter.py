"""`pretune init`: a commented study for one's own folders, made of what the files show."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from pretune.search_spaces.words import counted
from pretune.trainables.data.errors import DataError

if TYPE_CHECKING:
    from pretune.data.backbones import Network
    from pretune.data.survey.groups import Groups
    from pretune.data.survey.images import ImagesSeen, Sizes
    from pretune.data.survey.pairs import PairsSeen

SCHEMA_FILE = ".pretune.schema.json"  # beside the study, for editors
RARE = 0.05  # share of pixels below which a class is rare
ROUND = 1.34  # longer over shorter side up to which squashing to a square changes shapes little
LARGE = 4  # times the cached square: images of which much would be lost
IMAGENET = '{name: weights, source: "package:efficientnet-lite0"}'
EFFICIENTNET = 4  # times the seconds that the U-Net takes for a pixel, roughly
FEW = 40  # labelled training images below which a tenth of them is too few to train on
LEAST_STEPS = 500  # of pretraining: SimCLR had learned next to nothing after 80 (docs/decisions/readme.md)
FIRST = (80, 100)  # steps of pretraining and fine-tuning for a first answer; SimCLR collapsed in fewer than 80
LEAST_LABELS = 4  # images that the smaller level of `labels` has at least; it is left out where they are over half
VALIDATED = 16  # labelled images below which one alone is validation: the model that is kept is chosen by it
LEAST = 2  # images that a training takes


class Hardware(NamedTuple):
    """Hardware that one stage run may take, from where `pretune init` runs."""

    gpu: bool
    cores: int

    @property
    def largest(self) -> int:
        """px of the cached square."""
        return 256 if self.gpu else 128

    @property
    def pixels(self) -> float:
        """Pixels that a training stage may see in all: about ten minutes, by U-Net steps on one core and an A100."""
        return 6e10 if self.gpu else 4e8


class Pool(NamedTuple):
    """A folder of images without labels."""

    folder: Path
    seen: ImagesSeen


def starter(
    name: str, labelled: PairsSeen | None, pool: Pool | None, hardware: Hardware, network: Network | None = None
) -> str:
    """The text of a study. Without `labelled`, a path and classes stand as examples to be changed.

    A `network` that has weights gives two more starts. Raises DataError where there are too few images.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "my-study"
    plan = _Plan(labelled, _images_of(labelled), pool, hardware, network)
    _refuse_too_few(plan)
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# A Pretune study. `pretune plan {name}.yaml` shows what it would run, `pretune run {name}.yaml` runs it.",
        f"study: {quoted(name)}",
        f"question: {_asked(plan)}",
        "",
        "data:",
        *_labelled(plan),
        *_unlabelled(plan),
        "",
        *_stages(plan),
        "",
        *_question(plan),
    ]
    return "\n".join(_aligned(lines)) + "\n"


def _asked(plan: _Plan) -> str:
    if plan.weights is not None:
        return "Which start is best, random, pretrained on own images or on ImageNet, and should it be frozen?"
    return "Does pretraining help, and should the encoder be frozen?"


def quoted(text: str) -> str:
    """As YAML that reads as this text: quoted unless it is plain letters, which `no`, `1` and `a: b` are not."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text
    return text if plain else yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def _images_of(labelled: PairsSeen | None) -> ImagesSeen | None:
    from pretune.data.survey.images import images_seen
    from pretune.trainables.data.listing import file_of

    return None if labelled is None else images_seen([file_of(e.image) for e in labelled.listing.entries], {})


@dataclass(frozen=True)
class _Plan:
    """Numbers of the study that follow from what was seen."""

    labelled: PairsSeen | None
    images: ImagesSeen | None  # the labelled ones
    pool: Pool | None
    hardware: Hardware
    network: Network | None = None

    @property
    def data(self) -> str:
        return "labelled" if self.pool else "mine"

    @property
    def weights(self) -> str | None:
        return None if self.network is None else self.network.weights

    @property
    def pretrained_on(self) -> str:
        return "unlabelled" if self.pool else "mine"

    @property
    def count(self) -> int:
        """Labelled images."""
        return self.labelled.count if self.labelled is not None else 100

    @property
    def sizes(self) -> Sizes | None:
        seen = self.images or (self.pool.seen if self.pool is not None else None)
        return seen.sizes if seen is not None else None

    @property
    def channels(self) -> int | None:
        """Channels of the images; None of three colours."""
        seen = self.images or (self.pool.seen if self.pool is not None else None)
        return seen.channels if seen is not None else None

    @property
    def size(self) -> int:
        short = self.sizes.short if self.sizes is not None else self.hardware.largest
        most = min(self.hardware.largest, short)
        return max(32, most // 32 * 32) if self.network is None else self.network.multiple(most)

    @property
    def view(self) -> int:
        most = min(self.size, 128 if self.hardware.gpu else 64)
        return most if self.network is None else self.network.multiple(most)

    @property
    def fit(self) -> str:
        """pad where images of several shapes are not square; images of one shape are all squashed alike."""
        if self.sizes is None or self.sizes.aspect <= ROUND:
            return "squash"
        return "pad" if len({round(width / height, 2) for width, height in self.sizes.counts}) > 1 else "squash"

    @property
    def tests(self) -> int | None:
        """Images on an official test list."""
        marks = [] if self.labelled is None else [entry.test for entry in self.labelled.listing.entries]
        return None if not marks or None in marks else sum(map(bool, marks))

    @property
    def groups(self) -> Groups | None:
        from pretune.data.survey.groups import find_groups

        return None if self.labelled is None else find_groups([entry.name for entry in self.labelled.listing.entries])

    @property
    def listed(self) -> int:
        """Images below val/, beside a test/ that makes them validation."""
        from pretune.trainables.data.sets.folders import TEST, VAL

        names = [] if self.labelled is None else [entry.name for entry in self.labelled.listing.entries]
        tops = [name.split("/")[0].lower() for name in names]
        return sum(top in VAL for top in tops) if {*tops} & {*TEST} else 0

    @property
    def parts(self) -> tuple[float | str, float | str]:
        """Test and validation: of few images larger shares, since a score on three images says little."""
        if self.tests is not None:
            rest = self.count - self.tests
            return "official", "official" if self.listed else max(1, rest // 8)
        return (0.2, 0.1) if self.count >= 50 else (0.25, 0.25 if self.count >= VALIDATED else 1)

    @property
    def held(self) -> tuple[int, int]:
        """Images for test and validation."""
        test, val = self.parts
        tests = self.tests or 0 if isinstance(test, str) else round(self.count * test)
        vals = self.listed if isinstance(val, str) else val if isinstance(val, int) else round(self.count * val)
        return tests, vals

    @property
    def train(self) -> int:
        return self.count - sum(self.held)

    @property
    def pool_count(self) -> int:
        return self.pool.seen.count if self.pool is not None else self.train

    @property
    def rarest(self) -> float:
        """Share of pixels of the rarest class."""
        return 1.0 if self.labelled is None else self.labelled.meaning.rarest

    @property
    def batches(self) -> tuple[int, int]:
        """Images in a batch of pretraining, and of fine-tuning."""
        gpu = self.hardware.gpu
        return _batch(self.pool_count, 256 if gpu else 64), _batch(self.train, 32 if gpu else 8)

    def epochs(self, images: int, size: int, most: int) -> int:
        slower = 1 if self.weights is None else EFFICIENTNET
        return int(max(5, min(most, self.hardware.pixels / (slower * images * size * size))))


def _refuse_too_few(plan: _Plan) -> None:
    """Raises DataError where there is nothing to train on or nothing to test on."""
    if plan.labelled is not None and (plan.train < LEAST or not plan.held[0]):
        alone = plan.labelled.listing.problems
        has = f"{plan.train} for training" if plan.tests else f"{plan.count} in all"
        has += f"; {without_partner(alone)}" if alone else ""
        raise DataError(
            f"{plan.labelled.root}: too few images with masks ({has}); a study needs at least {LEAST} to train on, 1 "
            f"to validate and 1 to test: label {LEAST - plan.train if plan.tests else LEAST + 2 - plan.count} more"
        )
    if plan.pool is not None and plan.pool.seen.count < LEAST:
        raise DataError(f"{plan.pool.folder}: 1 image is too few to pretrain on; add at least {LEAST - 1} more")


def _batch(images: int, most: int) -> int:
    """The largest power of two up to half of the images, from 2 to `most`."""
    return max(2, min(most, 1 << max(0, (images // 2).bit_length() - 1)))


def _labelled(plan: _Plan) -> Iterator[str]:
    seen, name = plan.labelled, plan.data
    if seen is None:
        yield f"  {name}:"
        yield "    dataset: image-mask-folder\tpairs of files with equal stems, e.g. photos/a.jpg and labels/a.png"
        yield "    root: path/to/my-data\tthe folder with the two below"
        yield "    images: images"
        yield "    masks: masks\tpixel value 0 is the first class, 1 the second, ..."
        yield "    classes: [background, object]"
        yield from _common(plan)
        return
    yield f"  {name}:\t{plan.images}"
    if seen.annotations is not None:
        yield from _coco(seen, seen.annotations)
        yield from _common(plan)
        return
    yield "    dataset: image-mask-folder"
    yield f"    root: {quoted(str(seen.root))}"
    yield f"    images: {quoted(seen.images)}"
    yield f"    masks: {quoted(seen.masks)}\t{_pairing(seen)}"
    for key, pattern in (("image_name", seen.names.image), ("mask_name", seen.names.mask)):
        if pattern != "{stem}":
            yield f"    {key}: {quoted(pattern)}\tnames without suffix"
    yield from _meaning(seen)
    yield from _common(plan)


def _coco(seen: PairsSeen, annotations: str) -> Iterator[str]:
    yield "    dataset: coco"
    yield f"    root: {quoted(str(seen.root))}"
    yield f"    images: {quoted(seen.images)}"
    yield f"    annotations: {quoted(annotations)}\tpolygons or run lengths; crowds are ignored"
    yield f"    classes: [{', '.join(map(quoted, seen.meaning.classes[1:]))}]\t{seen.meaning.why}"


def _meaning(seen: PairsSeen) -> Iterator[str]:
    """The classes, and what in the masks is which of them."""
    meaning = seen.meaning
    why = meaning.why + ("" if seen.looked_at == seen.count else f" (of {counted(seen.looked_at, 'mask')})")
    colors = meaning.settings.get("mask_colors")
    if isinstance(colors, dict):
        yield f"    mask_colors:\t{why}"
        yield from (f"      {quoted(one)}: {color}" for one, color in colors.items())
        if ignored := meaning.settings.get("ignore_colors"):
            yield f"    ignore_colors: {ignored}\tleft out of losses and scores"
        else:
            yield "    # ignore_colors: [[224, 224, 192]]\tleft out of losses and scores: pretune init --ignore R,G,B"
    elif colors is not None:
        yield f"    mask_colors: {colors}\t{why}"
    else:
        yield f"    classes: [{', '.join(map(quoted, meaning.classes))}]\t{why}"
        yield from (f"    {key}: {value}" for key, value in meaning.settings.items())
        if "ignore" not in meaning.settings:
            yield "    # ignore: 255\ta mask value left out of losses and scores: pretune init --ignore 255"


def _pairing(seen: PairsSeen) -> str:
    count, alone = seen.count, seen.listing.problems
    rule = "equal names" if seen.names.mask == seen.names.image == "{stem}" else "by name"
    text = f"{counted(count, 'pair')}, {rule}"
    return text + (f"; {without_partner(alone)}" if alone else "")


def without_partner(problems: Sequence[str]) -> str:
    """'1 file without a partner: ...', '3 files without a partner, for example ...'."""
    example = ":" if len(problems) == 1 else ", for example"
    return f"{counted(len(problems), 'file')} without a partner{example} {problems[0]}"


def _common(plan: _Plan) -> Iterator[str]:
    where = "a GPU" if plan.hardware.gpu else "CPUs"
    alone = plan.labelled.listing.problems if plan.labelled is not None else ()
    sides = f"; the images' median short side is {plan.sizes.short} px" if plan.sizes is not None else ""
    yield f"    cache_size: {plan.size}\tpx (init chooses at most {plan.hardware.largest} on {where}){sides}"
    if plan.sizes is not None and plan.sizes.short >= LARGE * plan.size:
        yield "    # fit: tile\tfull resolution: each image is cut into squares of cache_size px"
    if plan.images is not None:
        yield from (f"    {setting}\t{why}" for setting, why in plan.images.reading.items())
    if plan.fit == "pad":
        yield f"    fit: pad\tshapes are kept: images are up to {_aspect(plan):.1f} times as long as wide"
    if alone:
        yield "    on_error: skip\tleave bad files out and record which; fail refuses them"
    else:
        yield "    on_error: fail\tor skip: leave bad files out and record which"
    yield from _split(plan)


def _split(plan: _Plan) -> Iterator[str]:
    (test, val), groups = plan.parts, plan.groups
    if plan.tests is not None:
        drawn = "" if val == "official" else f"; {plan.held[1]} of {plan.train + plan.held[1]} are validation"
        yield f"    split: {{test: official, val: {val}, seed: 0}}\tthe folders' names say which{drawn}"
    elif groups is None:
        yield f"    split: {{test: {test}, val: {val}, seed: 0}}\t{plan.train} pairs are left for training"
    else:
        form = (
            groups.setting if isinstance(groups.setting, str) else f"{{pattern: {quoted(groups.setting['pattern'])}}}"
        )
        yield f"    split:\t{groups.groups} groups by name, such as {groups.example}: none is in two parts"
        yield f"      test: {test}\treplaced by the folds below"
        yield f"      val: {val}"
        yield "      seed: 0"
        yield f"      group: {form}\tor parent, or {{column: ...}} of a split.file"


def _aspect(plan: _Plan) -> float:
    return 1.0 if plan.sizes is None else plan.sizes.aspect


def _unlabelled(plan: _Plan) -> Iterator[str]:
    if plan.pool is None:
        return
    unread = ", ".join(f"{count} {suffix}" for suffix, count in sorted(plan.pool.seen.unread.items()))
    yield f"  unlabelled:\t{plan.pool.seen}"
    if unread:
        yield f"    # not read: {unread}"
    yield "    dataset: image-folder"
    yield f"    root: {quoted(str(plan.pool.folder.resolve()))}"
    yield f"    cache_size: {plan.size}\tpx, as above"
    yield from (f"    {setting}\t{why}" for setting, why in plan.pool.seen.reading.items())
    if plan.fit == "pad":
        yield "    fit: pad"
    yield "    on_error: skip\tleave bad files out and record which"
    yield "    split: none\tall images are for pretraining; test images come from the labelled ones"


def _stages(plan: _Plan) -> Iterator[str]:
    gpu, pool = plan.hardware.gpu, plan.pool_count
    widths = [32, 64, 128, 256] if gpu else [16, 32, 64, 128]
    batch, tuned = plan.batches
    each = max(1, pool // batch)  # steps of an epoch
    steps = max(plan.epochs(pool, plan.view * 2, 200) * each, LEAST_STEPS)
    channels = "" if plan.channels is None else f", channels: {plan.channels}"
    if plan.network is not None:
        yield from _model(plan.network, channels)
    else:
        yield f"model: {{name: unet, widths: {widths}{channels}}}" + ("" if gpu else "\thalf as wide as on a GPU")
    yield ""
    seen = "without labels, on the whole pool" if plan.pool else "without labels, on the training images"
    yield f"pretrain:\t{seen}"
    yield f"  data: {plan.pretrained_on}"
    yield "  method: {name: simclr, temperature: 0.2}"
    if plan.channels is not None:
        yield "  # jitter changes brightness, contrast and distance from the channels' mean; there is no hue"
    yield f"  views: {{size: {plan.view}, crop: [0.2, 1.0], color_jitter: 0.8, gray: 0.2}}"
    yield "  optimizer: {name: adam, lr: 1.0e-3}"
    yield f"  batch_size: {batch}\tof {counted(pool, 'image')}"
    yield f"  steps: {steps}\t{steps / each:.0f} epochs; more may help (cost: pretune plan FILE --time)"
    yield ""
    yield "finetune:"
    yield f"  data: {plan.data}"
    yield f"  size: {plan.size}\tpx"
    yield f"  labels: all\tor 10%, or a number of images such as {max(1, plan.train // 2)}"
    yield "  transfer: encoder\tnone | encoder"
    yield "  freeze: none\tnone | encoder"
    yield _loss(plan)
    yield "  optimizer: {name: adam, lr: 1.0e-3}\ta range is tuned: lr: {log_uniform: [1.0e-4, 1.0e-2]}"
    yield f"  batch_size: {tuned}\tof {counted(plan.train, 'training image')}"
    yield f"  epochs: {plan.epochs(plan.train, plan.size, 100)}"


def _model(network: Network, channels: str) -> Iterator[str]:
    tied = "" if network.image_size is None else f", image_size: {network.image_size}"
    sizes = f"image sizes must be multiples of {network.stride} px" if not tied else "all sizes are equal"
    yield f"model: {{name: {network.name}, backbone: {network.backbone}{tied}{channels}}}\trandom weights; {sizes}"
    if network.weights is None:
        yield "# start from weights: pretrain: {data: ..., method: {name: weights, source: FILE.safetensors}}"


def _loss(plan: _Plan) -> str:
    if plan.rarest < RARE:
        why = f"the rarest class has {plan.rarest:.1%} of the pixels, and cross-entropy alone forgets it"
        return f"  loss: dice+cross-entropy\t{why}"
    return "  loss: dice\tdice | cross-entropy | dice+cross-entropy | focal"


def _question(plan: _Plan) -> Iterator[str]:
    few = "10%" if plan.train >= FEW else str(LEAST_LABELS)
    yield "factors:\twhat the question is about; all combinations are the cells of the table"
    yield "  start:"
    yield "    random: {finetune.transfer: none}"
    yield "    pretrained: {finetune.transfer: encoder}"
    yield "    pretrained and frozen: {finetune.transfer: encoder, finetune.freeze: encoder}"
    if plan.weights is not None:
        method = f'{{name: weights, source: "{plan.weights}"}}'
        weights = f"pretrain: &imagenet {{data: {plan.pretrained_on}, method: {method}}}"
        yield f"    ImageNet: {{{weights}}}\ttrained with labels, on photographs of things and animals"
        yield "    ImageNet and frozen: {pretrain: *imagenet, finetune.freeze: encoder}"
    else:
        yield "    # weights of ImageNet as two more starts: pretune init --imagenet"
    column, several_labels = "labels", plan.rarest >= RARE and plan.train >= 2 * LEAST_LABELS
    if plan.rarest < RARE:
        column = ""
        yield "  # two ways to keep a rare class, for twice the time; add `columns: loss` to the report"
        yield "  # loss: {finetune.loss: [dice+cross-entropy, focal]}"
    elif several_labels:
        yield f"  labels: {{finetune.labels: [all, {few}]}}"
    else:
        column = ""
    rows = "start"
    if plan.groups is not None and plan.tests is None:
        folds = min(5, plan.groups.groups)
        levels = ", ".join(f"{k + 1}/{folds}" for k in range(folds))
        yield f"  fold: {{data.{plan.data}.split.fold: [{levels}]}}\teach group is tested once; the table has the mean"
        rows = f"[start, {column}]" if column else "start"
        column = "fold"
    columns = f", columns: {column}" if column else ""
    yield ""
    yield "seeds: {search: 1, report: 3}"
    yield "# tune: {sampler: tpe, trials: 20}\tonly where there are ranges"
    yield "# the answer compares each cell only with the baseline; for another pair, change the baseline and run again"
    yield f"report: {{rows: {rows}{columns}, metrics: [test/jaccard], baseline: {{start: random}}}}"
    limit = f", data.{plan.data}.limit: 200" if plan.count > 200 else ""
    pool = ", data.unlabelled.limit: 200" if plan.pool is not None and plan.pool.seen.count > 200 else ""
    yield "scales:\tpretune run FILE --scale NAME"
    short = f"{{pretrain.steps: 10, finetune.epochs: 2{limit}{pool}}}"
    yield f"  small: {short}\ta check that everything runs; ignore its numbers"
    yield _first(plan, several_labels)


def _first(plan: _Plan, several_labels: bool) -> str:
    """The scale of a first answer: all starts and seeds, all labels, small images, short trainings."""
    tuned = math.ceil(FIRST[1] / max(1, plan.train // plan.batches[1]))
    tied = plan.network is not None and plan.network.image_size is not None
    size = "" if tied else f", finetune.size: {plan.view}"
    labels = ", factors.labels: {finetune.labels: [all]}" if several_labels else ""
    about = f"about {FIRST[1]} steps of fine-tuning, all labels; too short to judge your own pretraining"
    return f"  first: {{pretrain.steps: {FIRST[0]}, finetune.epochs: {tuned}{size}{labels}}}\t{about}"


def _aligned(lines: Sequence[str]) -> Iterator[str]:
    """`text<tab>why` -> text and comment in columns, above it where that is long. No text holds a tab."""
    for line in lines:
        text, _, why = line.partition("\t")
        if not why:
            yield line
        elif len(text) < 40:
            yield f"{text:<40}# {_one_line(why)}"
        else:
            indent = text[: len(text) - len(text.lstrip())]
            yield f"{indent}# {_one_line(why)}"
            yield text


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())

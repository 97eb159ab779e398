"""Writes docs/settings.md from the schema: every setting with its type, default and meaning.

    python docs/settings.py            write the page
    python docs/settings.py --unused   list the settings that no study, page or test names

A meaning is the comment beside the setting, in search_spaces/schema/; else what MEANINGS has of its name, for names
that mean the same wherever they stand.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pretune.search_spaces.meanings import comment_of

TOP = Path(__file__).resolve().parents[1]
SCHEMA = TOP / "search_spaces" / "schema"
PAGE = TOP / "docs" / "settings.md"
PARTS = {
    "study": "Study",
    "data_settings": "Data",
    "published": "Published data sets",
    "own_data": "Your own data",
    "data": "Generated data, and volumes",
    "splits": "Splits",
    "model": "Models",
    "methods": "Pretraining methods",
    "stages": "Stages and probes",
    "scores": "Scores that a setting turns on",
    "optim": "Optimizers and schedules",
}
CHOSEN_BY = ("name", "dataset", "kind")  # settings whose value says which mapping it is
HEAD = """# Settings

Every setting of a study file, as the schema (`search_spaces/schema/`) has it. Without a default it must be given.
`python docs/settings.py` writes this page: edit the comments there, not here.
"""
MEANINGS = {
    "alpha": "weight",
    "aspect": "range of width over height of a crop",
    "augment": "joint transforms of images and masks",
    "baseline": "levels of the cell that others are compared with",
    "betas": "of Adam's moving averages",
    "batch_size": "images per step",
    "bottleneck": "width of the head's last layer before the prototypes",
    "budget": "when to stop searching",
    "cache_size": "px; images are decoded once to this square",
    "cell": "of one cell",
    "center_momentum": "of the moving average of the teacher's outputs",
    "color_jitter_probability": "share of views with colour jitter",
    "data": "name of the data set, of those under `data`; at the top the data sets by name",
    "decay": "which parameters weight decay applies to",
    "decoder_widths": "channels of the decoder's blocks, the coarsest first",
    "depth": "layers of the ResNet; of data sets, the depth maps",
    "dim": "width of the head's output",
    "dimensions": "2 for images, 3 for volumes",
    "epochs": "passes over the training images",
    "extra_probability": "chance of each transform of `extra`",
    "finetune": "fine-tuning, or the part of it that this is about",
    "fit": "how an image becomes square",
    "flip": "chance of mirroring left to right",
    "fold": "1/k to k/k: this part of all images is the test set, in place of `test`",
    "freeze": "what keeps its pretrained weights",
    "gamma": "factor of the rate at each step down",
    "gpu_hours": "hours times GPUs",
    "hidden": "width of the head's hidden layers",
    "hold": "seed streams that are the same in all replicates",
    "images": "how many are generated; of arrays, the name of the images'",
    "intensity": "chance of a change of intensity",
    "k": "neighbours",
    "local_views": "number of small views",
    "loss": "loss that is minimised",
    "lr": "learning rate",
    "masks": "name of the masks",
    "method": "the pretraining method, `method.name`",
    "metric": "metric of the published numbers",
    "metrics": "metrics that tables show",
    "model": "the network",
    "momentum": "of SGD, or of the moving average of weights at the start",
    "momentum_end": "the same at the end of training, reached along half a cosine",
    "nesterov": "whether momentum is Nesterov's",
    "norm": "normalisation after each convolution",
    "note": "what to say beside the published numbers",
    "of": "which class is told from the others; of a pairwise probe, whose encoders",
    "on": "test: score the test set, in the confirm phase; default: validation images",
    "optimizer": "the optimizer, `optimizer.name`",
    "paint": "chance of painting over",
    "part": "which part of the data set",
    "percent": "whether values are written in percent",
    "pooling": "how a feature map becomes one vector",
    "precision": "of forward and backward pass; weights stay in float32",
    "pretrain": "pretraining, or the part of it that this is about",
    "probe": "probes of a pretrained encoder, by name",
    "prototypes": "number of prototypes",
    "question": "what the study asks, for the report",
    "queue_from_epoch": "epoch from which the queue is filled",
    "racing": "give seeds a few at a time",
    "regions": "region maps of the images",
    "report": "tables and figures; of seeds, those of the confirm phase",
    "resources": "processors and GPUs of stages",
    "root": "folder or file with the data",
    "rule": "how runs are stopped",
    "rungs": "judge after the first epochs",
    "sampler": "how values are chosen",
    "schedule": "of the learning rate, `schedule.name`",
    "search": "seeds of the search phase",
    "seed": "of what is drawn here (test set, folds, images), the same in all replicates; each draws its own `val`",
    "seeds": "replicates of the phases",
    "shuffle": "chance of shuffling small blocks",
    "shuffle_window": "images shuffled together",
    "skip_connections": "whether the decoder sees the encoder's finer maps",
    "slices": "of a volume",
    "split": "which images are for what",
    "steps": "training steps, in place of epochs",
    "student_temperature": "of the student's softmax",
    "study": "name of the study; of a budget, of all its cells",
    "target": "validation metric that tuning optimises",
    "tasks": "what is restored",
    "teacher_temperature": "of the teacher's softmax after the warm-up",
    "teacher_warmup_epochs": "epochs in which the teacher's temperature moves to its value",
    "temperature": "divisor of similarities before the softmax",
    "test": "test set: the official one, a count or a share of all images",
    "transfer": "what fine-tuning takes of the pretraining",
    "trials": "configurations that are tried",
    "tune": "how ranges are searched",
    "val": "validation set: a count or a share of all images",
    "trust_coefficient": "of LARS' rate of a layer over its weights' norm",
    "values": "rows of the published table",
    "views": "how training views are cut and changed",
    "warmup_epochs": "epochs in which the rate rises from 0",
    "weight_decay": "decay of the weights",
    "widths": "channels of the levels, the finest first",
    "covariance": "weight of the covariance term",
    "variance": "weight of the variance term",
}


class Setting(NamedTuple):
    name: str
    type: str
    default: str  # "" where it must be given
    meaning: str


class Group(NamedTuple):
    """The settings of one mapping of a study file."""

    title: str
    words: str  # the first paragraph of the class's docstring
    settings: list[Setting]


def groups_of(path: Path) -> Iterator[Group]:
    """The classes of settings in a file of the schema, in its order, each without what it inherits."""
    text = path.read_text("utf-8")
    for node in ast.parse(text).body:
        if (
            isinstance(node, ast.ClassDef)
            and "Facts" not in node.name
            and "NamedTuple" not in map(ast.unparse, node.bases)
        ):
            words = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            fields = [
                f for f in node.body if isinstance(f, ast.AnnAssign) and "ClassVar" not in ast.unparse(f.annotation)
            ]
            chosen = [f"{_name(f)}: {_value(f)}" for f in fields if _name(f) in CHOSEN_BY and _value(f)]
            base = _base(node)
            title = f"`{chosen[0]}`" if chosen else node.name.lstrip("_")
            settings = [_setting(f, text.splitlines()) for f in fields if not (_name(f) in CHOSEN_BY and _value(f))]
            more = f" Also the settings of {base}." if base else ""
            if settings or chosen:
                yield Group(title, (words + more).strip(), settings)


def _base(node: ast.ClassDef) -> str:
    return " and ".join(base.lstrip("_") for base in map(ast.unparse, node.bases) if base != "Settings")


def _name(field: ast.AnnAssign) -> str:
    return ast.unparse(field.target)


def _value(field: ast.AnnAssign) -> str:
    """The one value of a Literal, without its quotes."""
    found = re.fullmatch(r"Literal\['([^']+)'\]", ast.unparse(field.annotation))
    return found[1] if found else ""


def _setting(field: ast.AnnAssign, lines: list[str]) -> Setting:
    default = "" if field.value is None else ast.unparse(field.value).replace("'", "")
    name = _name(field)
    return Setting(
        name, _type(ast.unparse(field.annotation)), default, comment_of(field, lines) or MEANINGS.get(name, "")
    )


def _type(annotation: str) -> str:
    """The annotation without what only Python wants: Annotated[int, Field(ge=2)] is int ≥ 2."""
    text = re.sub(r"Annotated\[str, .+\]", "str", annotation)
    text = re.sub(r"Annotated\[(.+?), BeforeValidator\(\w+\)\]", r"\1", text)
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

    def bounded(match: re.Match[str]) -> str:
        limits = [f"{bounds[key]} {value}" for key, value in re.findall(r"\b(ge|gt|le|lt)=([\d.]+)", match[2])]
        return " ".join([match[1], *limits])

    text = re.sub(r"Annotated\[(\w+), Field\(([^()]*)\)\]", bounded, text)
    text = re.sub(r"Annotated\[(tuple\[.*\]), Field\([^()]*\)\]", r"\1", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " / "), text)
    for name, words in {"PositiveInt": "int > 0", "NonNegativeInt": "int ≥ 0", "PositiveFloat": "float > 0",
                        "Fraction": "0 to 1", "Share": "0 to below 1", " | None": " or none"}.items():  # fmt: skip
        text = text.replace(name, words)
    return text.replace("|", "or")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for file, title in PARTS.items():
        parts.append(f"## {title}\n")
        for group in groups_of(SCHEMA / f"{file}.py"):
            parts.append(f"### {group.title}\n")
            parts += [f"{group.words}\n"] if group.words else []
            parts += [f"{table(group.settings)}\n"] if group.settings else []
    return "\n".join(parts)


def table(settings: list[Setting]) -> str:
    rows = [(f"`{s.name}`", s.type, f"`{s.default}`" if s.default else "", s.meaning) for s in settings]
    lines = [("setting", "type", "default", "meaning"), ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def unused() -> list[str]:
    """Settings that no shipped study, no page but this one and no test names."""
    texts = [
        path.read_text("utf-8")
        for folder, kind in (("search_spaces", "*.yaml"), ("docs", "*.md"), ("tests", "*.py"), ("tests", "*.yaml"))
        for path in sorted((TOP / folder).rglob(kind))
        if path != PAGE
    ]
    words = set(re.findall(r"\w+", " ".join([*texts, (TOP / "README.md").read_text("utf-8")])))
    return [
        f"{file}.{group.title}.{setting.name}"
        for file in PARTS
        for group in groups_of(SCHEMA / f"{file}.py")
        for setting in group.settings
        if setting.name not in words
    ]


if __name__ == "__main__":
    if "--unused" in sys.argv:
        print("\n".join(unused()))
    else:
        PAGE.write_text(page(), "utf-8")

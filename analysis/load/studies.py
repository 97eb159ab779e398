"""Several studies read together: stored results, and settings as this version resolves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from pretune.analysis.load.results import ResultsError, StudyHeader, load, load_header
from pretune.analysis.load.runs import load_stage_runs
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import Study, from_yaml

_LONGEST_NAME = 16  # of a column: at 80 columns, longer ones are cut


@dataclass(frozen=True)
class StoredStudy:
    """One study's folder, read."""

    name: str  # tells it from the others: the study's own, or a letter where names are long or equal
    title: str  # the whole name, or the folder where studies are of one name
    header: StudyHeader
    results: pandas.DataFrame
    stage_runs: pandas.DataFrame  # empty where no stage run is on record
    written: Mapping[str, Any]  # study.yaml as it stands there
    settings: Study | None  # with defaults; None where this version cannot resolve study.yaml

    def cell(self, label: str) -> Cell | None:
        """The settings of a cell; None where they are not known."""
        cells = () if self.settings is None else self.settings.cells
        return next((cell for cell in cells if cell.label == label), None)


def load_studies(folders: Sequence[Path]) -> tuple[StoredStudy, ...]:
    """Read each folder. Raises ResultsError for fewer than two, one given twice, or one that cannot be read."""
    if len(folders) < 2:
        raise ResultsError("a comparison takes two studies or more: name another folder")
    twice = [str(folder) for folder, n in Counter(Path(folder).resolve() for folder in folders).items() if n > 1]
    if twice:
        raise ResultsError(f"{twice[0]} is given twice: name each study once")
    headers = [load_header(folder) for folder in folders]
    named = Counter(header.title for header in headers)
    titles = [
        header.title if named[header.title] == 1 else str(folder)
        for folder, header in zip(folders, headers, strict=True)
    ]
    names = titles if max(map(len, titles)) <= _LONGEST_NAME else [_letter(place) for place in range(len(titles))]
    every = zip(folders, headers, names, titles, strict=True)
    return tuple(_read(Path(folder), header, name, title) for folder, header, name, title in every)


def _letter(place: int) -> str:
    """A to Z, then S27 and on."""
    return chr(ord("A") + place) if place < 26 else f"S{place + 1}"


def _read(folder: Path, header: StudyHeader, name: str, title: str) -> StoredStudy:
    path = folder / "study.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        written = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ResultsError(f"{path} cannot be read: it is missing or damaged") from error
    if not isinstance(written, Mapping):
        raise ResultsError(f"{path} cannot be read: it is missing or damaged")
    try:
        settings = from_yaml(text)
    except StudyError:  # of another version, or of weights that are not installed here
        settings = None
    return StoredStudy(name, title, header, load(folder), load_stage_runs(folder), written, settings)

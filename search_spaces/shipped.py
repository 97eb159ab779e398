"""Studies that come with the package and are run by their name: `pretune run quickstart`."""

from __future__ import annotations

from pathlib import Path

from pretune.search_spaces.document import Problem, StudyError, did_you_mean

FOLDERS = ("studies", "papers")


def shipped() -> dict[str, Path]:
    """Return the file of each study, by name."""
    here = Path(__file__).resolve().parent
    return {file.stem: file for folder in FOLDERS for file in sorted((here / folder).glob("*.yaml"))}


def find_study(path: Path) -> Path:
    """Return `path` itself, or the shipped study of that name where there is no such file.

    Raises:
        StudyError: there is neither; a path with a folder or an ending is looked for as a file alone.
    """
    if (path.exists() and not path.is_dir()) or path.parent != Path() or path.suffix:
        return path
    known = shipped()
    if path.name not in known:
        fix = did_you_mean(path.name, known)
        what = "this file does not exist, and Pretune has no study with this name"
        raise StudyError([Problem(0, "file", what, fix)], str(path))
    return known[path.name]

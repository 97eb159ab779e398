"""Studies that are run by their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import load
from pretune.search_spaces.shipped import find_study, shipped


def test_every_study_of_both_folders_has_a_name_of_its_own() -> None:
    top = Path(__file__).resolve().parents[2] / "search_spaces"
    files = [*(top / "studies").glob("*.yaml"), *(top / "papers").glob("*.yaml")]
    assert {path.resolve() for path in shipped().values()} == {path.resolve() for path in files}
    assert len(shipped()) == len(files)


def test_a_file_of_the_user_comes_before_a_shipped_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(find_study(Path("quickstart"))).name == "quickstart"
    Path("quickstart").write_text("mine")
    assert find_study(Path("quickstart")) == Path("quickstart")
    Path("temperature").mkdir()  # a folder of results, say
    assert find_study(Path("temperature")).name == "temperature.yaml"


@pytest.mark.parametrize("path", ["quickstart.yaml", "studies/quickstart", "/quickstart"])
def test_what_is_written_as_a_file_is_a_file(path: str) -> None:
    """A missing study of the user's is not replaced by one of ours in silence."""
    assert find_study(Path(path)) == Path(path)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(StudyError, match=r'no study with this name .*"quickstart"'):
        find_study(Path("quikstart"))
    with pytest.raises(StudyError, match=r"\(known here: .*quickstart.*\)"):
        find_study(Path("zzzzzz"))

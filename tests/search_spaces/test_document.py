"""YAML with line numbers. Lines are counted by hand in the texts below; the first is line 1."""

import re

import pytest

from pretune.search_spaces.document import (
    Locations,
    Problem,
    StudyError,
    did_you_mean,
    from_mapping,
    line_of,
    parse,
    read,
)


def test_every_key_and_list_item_knows_its_line():
    document = parse("study: a\nmodel:\n  widths:\n    - 8\n    - 16\n")
    assert document.data == {"study": "a", "model": {"widths": [8, 16]}}
    assert document.lines == {
        (): 1, ("study",): 1, ("model",): 2, ("model", "widths"): 3,
        ("model", "widths", 0): 4, ("model", "widths", 1): 5,
    }  # fmt: skip


def test_a_value_without_a_line_has_that_of_the_closest_key_above():
    lines = parse("study: a\nmodel:\n  widths: [8]\n").lines
    assert line_of(lines, ("model", "norm")) == 2
    assert line_of(lines, ("tune", "trials")) == 1
    assert line_of({}, ("tune",)) == 0


def test_merge_keys_are_resolved_and_a_key_of_its_own_goes_first():
    text = "base: &base {lr: 1, name: adam}\nother: &other {<<: *base, lr: 2}\nthird: *other\n"
    data = parse(text).data
    assert data["other"] == data["third"] == {"lr": 2, "name": "adam"}


def test_aliases_give_equal_but_separate_values():
    data = parse("a: &a {lr: 1}\nb: *a\n").data
    assert data["a"] == data["b"]
    assert data["a"] is not data["b"]


def test_words_that_yaml_takes_for_something_else_are_keys_all_the_same():
    assert parse("true: 1\n10: 2\nnull: 3\n").data == {"true": 1, "10": 2, "null": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "study:4: b.c: the key is given twice (remove one of the two)"),
        ("a: 1\nb: [1, 2\nc: 3\n", "study:3: not valid YAML: "),
        ("- a\n- b\n", "study:1: a study is a mapping of keys to values, this is not one"),
        ("", "study:1: a study is a mapping"),
        ("a: 1\n---\nb: 1\n", "study:2: not valid YAML: but found another document"),
        ("a: 1\nb: 2024-99-99\n", "study:2: b: not a value: month must be in 1..12 (quote it)"),
        ("a: !!python/name:os.system\n", "study:1: not valid YAML: could not determine a constructor"),
        ("a: *nowhere\n", "study:1: not valid YAML: found undefined alias"),
        ("a: 1\n[b, c]: 2\n", "study:2: study: a key is a list or a mapping (quote the key)"),
        ("a: &a {b: *a}\n", "study: is nested too deeply (a value may not contain itself)"),
        ("a: \x00\n", "study: not valid YAML: unacceptable character"),
    ],
)
def test_what_is_no_study_file_is_said_with_its_line(text, message):
    with pytest.raises(StudyError, match=re.escape(message)):
        parse(text)


def test_every_repeated_key_is_reported():
    with pytest.raises(StudyError, match="given twice") as caught:
        parse("a: 1\na: 2\nb: {c: 1, c: 2, c: 3}\n")
    assert [(problem.line, problem.where) for problem in caught.value.problems] == [(2, "a"), (3, "b.c")]


def test_a_file_that_is_a_bomb_of_aliases_is_refused():
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(12))  # 9^11 values
    with pytest.raises(StudyError, match="more than 20000 values"):
        parse(levels)


def test_files_are_read_and_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("study: ä\n", encoding="utf-8")
    assert read(path).data == {"study": "ä"}
    assert read(path).source == str(path)


def test_a_file_that_cannot_be_read_is_said_so(tmp_path):
    with pytest.raises(StudyError, match="there is no such file"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(StudyError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"study: \xe4\n")
    with pytest.raises(StudyError, match="cannot be read: 'utf-8' codec"):
        read(tmp_path / "latin.yaml")


def test_python_data_is_copied_apart_with_words_as_keys():
    shared = {"lr": 1}
    data = from_mapping({"a": shared, "b": shared, 3: (1, 2)}).data
    assert data == {"a": {"lr": 1}, "b": {"lr": 1}, "3": [1, 2]}
    assert data["a"] is not data["b"]


def test_python_data_that_contains_itself_is_refused():
    data: dict[str, object] = {}
    data["a"] = data
    with pytest.raises(StudyError, match="contains itself"):
        from_mapping(data)


def test_problems_are_sorted_by_line_and_said_once():
    late, early = Problem(7, "b", "is missing", "add it"), Problem(2, "a", "is empty")
    error = StudyError([late, early, late], "s.yaml")
    assert str(error) == "s.yaml:2: a: is empty\ns.yaml:7: b: is missing (add it)"


@pytest.mark.parametrize(
    ("word", "answer"),
    [("freze", 'did you mean "freeze"?'), ("xyz", "known here: freeze, loss"), ("los", 'did you mean "loss"?')],
)
def test_suggestions(word, answer):
    assert did_you_mean(word, ["loss", "freeze"]) == answer


def test_no_suggestion_where_nothing_is_known():
    assert did_you_mean("a", []) == ""


def test_places_name_stages_of_the_chain_as_they_are_written():
    lines = {("pretrain",): 3, ("pretrain", "views"): 4, ("finetune",): 9}
    single = Locations(lines, (("pretrain",),))
    assert single.problem(("pretrain", 0, "views", "size"), "x") == Problem(4, "pretrain.views.size", "x")
    assert single.problem(("finetune", "size"), "x", "y") == Problem(9, "finetune.size", "x", "y")
    second = Locations({("pretrain", 1): 6}, (("pretrain", 1),))  # the first was `none`
    assert second.problem(("pretrain", 0, "epochs"), "x") == Problem(6, "pretrain.1.epochs", "x")

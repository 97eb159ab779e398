"""Tables written out: `to_markdown`, `to_latex`, `to_html`, `to_rich`, which round; `csv.joined` does not."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

import rich.table
from pylatexenc.latexencode import UnicodeToLatexEncoder
from rich.console import Group, RenderableType
from rich.text import Text

from pretune.analysis.text.grids import BEST, AnyTable, TextGrid, text_grid

_NOTHING = "nothing to show yet"


def to_markdown(table: AnyTable) -> str:
    """A pipe table with its caption above and its notes below; ends in a newline."""
    return markdown_of(text_grid(table))


def markdown_of(laid: TextGrid) -> str:
    """The same of a table that is laid out."""
    if not laid.body:
        return "\n".join([_pipe(laid.caption), "", *(f"- {_pipe(note)}" for note in laid.notes or (_NOTHING,))]) + "\n"
    rows = [[_pipe(cell) for cell in row] for row in _embolden(laid, "**{}**".format)]
    rule = ["---"] * laid.left + ["---:"] * (len(laid.head) - laid.left)
    lines = ["| " + " | ".join(row) + " |" for row in [[_pipe(name) for name in laid.head], rule, *rows]]
    notes = [f"- {_pipe(note)}" for note in laid.notes]
    return "\n".join([_pipe(laid.caption), "", *lines, *(["", *notes] if notes else [])]) + "\n"


def to_latex(table: AnyTable) -> str:
    """A `table` environment in booktabs style; ends in a newline. Needs \\usepackage{booktabs}.

    A table that is wider than a line of text is scaled to it, which needs \\usepackage{graphicx} too.
    """
    laid = text_grid(table)
    if not laid.body:
        return f"% {_tex(laid.caption)}: {_tex('; '.join(laid.notes) or _NOTHING)}\n"
    escaped = laid._replace(body=tuple(tuple(map(_tex, row)) for row in laid.body))
    rows = [_tex_row(row) for row in _embolden(escaped, r"\textbf{{{}}}".format)]
    notes = [rf"\\ {{\footnotesize {_tex(note)}}}" for note in laid.notes]
    scaled = sum(max(map(len, column)) for column in zip(laid.head, *laid.body, strict=True)) > _TEX_LINE
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(laid.caption)}}}",
        *([r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"] if scaled else []),
        rf"\begin{{tabular}}{{{'l' * laid.left}{'r' * (len(laid.head) - laid.left)}}}",
        r"\toprule",
        _tex_row(list(map(_tex, laid.head))),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}" + ("}" if scaled else ""),
        *notes,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_remark(text: str) -> str:
    """A line that LaTeX does not print; ends in a newline."""
    return f"% {_tex(text)}\n"


def to_html(table: AnyTable) -> str:
    """A `table` element: caption above, notes in its foot, best of each column in <strong>; all text is escaped."""
    return html_of(text_grid(table))


def html_of(laid: TextGrid) -> str:
    """The same of a table that is laid out."""
    if not laid.body:
        said = html.escape("; ".join(laid.notes) or _NOTHING)
        return f'<p class="how">{html.escape(laid.caption)}: {said}</p>\n'
    escaped = laid._replace(body=tuple(tuple(map(html.escape, row)) for row in laid.body))
    rows = [_html_row(row, laid.left) for row in _embolden(escaped, "<strong>{}</strong>".format)]
    sides = [' class="text"'] * laid.left + [""] * (len(laid.head) - laid.left)
    head = "".join(
        f'<th scope="col"{side}>{html.escape(name)}</th>' for name, side in zip(laid.head, sides, strict=True)
    )
    notes = "".join(f'<tr><td colspan="{len(laid.head)}">{html.escape(note)}</td></tr>' for note in laid.notes)
    foot = f"<tfoot>{notes}</tfoot>" if notes else ""
    caption = f"<caption>{html.escape(laid.caption)}</caption>"
    body = "\n".join(rows)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>{foot}</table>\n"


def _html_row(cells: Sequence[str], left: int) -> str:
    labels = "".join(f'<th scope="row">{cell}</th>' for cell in cells[:left])
    return f"<tr>{labels}{''.join(f'<td>{cell}</td>' for cell in cells[left:])}</tr>"


def all_to_rich(tables: Iterable[AnyTable]) -> list[RenderableType]:
    """Tables for a terminal, one below the other: a note that stands below an earlier one is not repeated."""
    said: set[str] = set()
    return [to_rich(table, said) for table in tables]


def to_rich(table: AnyTable, said: set[str] | None = None) -> RenderableType:
    """The table for a terminal: best of each column bold with a star, published numbers beneath ours, notes below.

    Notes in `said` are left out, and those of this table are added to it.
    """
    laid = text_grid(table, beneath=True)
    if not laid.body:
        return Text(f"{laid.caption}: {'; '.join(laid.notes) or _NOTHING}")
    title = Text(f"{table.study}: {table.metric}", style="bold")
    pretty = rich.table.Table(title=title)
    for position, name in enumerate(laid.head):
        label = position < laid.left
        pretty.add_column(Text(name), justify="left" if label else "right", style="cyan" if label else "")
    for y, row in enumerate(laid.body):
        last_of_group = laid.left > 1 and y + 1 < len(laid.body) and laid.body[y + 1][0] != row[0]
        cells = (_rich_cell(text, (y, x) in laid.bold) for x, text in enumerate(row))
        pretty.add_row(*cells, end_section=last_of_group)
    legend = [f"{BEST.strip()} best mean of its column"] if laid.bold else []
    said = set() if said is None else said
    notes = [note for note in (*legend, *laid.notes) if note not in said]
    said.update(notes)
    below = Text("\n".join([laid.caption, *notes]), style="dim italic")  # as wide as the terminal, not the table
    return Group(pretty, below)


def _embolden(grid: TextGrid, bold: Callable[[str], str]) -> list[list[str]]:
    return [
        [bold(text) if (y, x) in grid.bold else text for x, text in enumerate(row)] for y, row in enumerate(grid.body)
    ]


def _rich_cell(text: str, bold: bool) -> Text:
    """Ours on the first line, published numbers dim beneath it."""
    own, newline, published = text.partition("\n")
    marked = Text(own + BEST, style="bold") if bold else Text(own)
    return marked + Text(newline + published, style="dim not bold")


def _pipe(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


_TEX_LINE = (
    45  # letters that fit for certain: a column of text in article is about 70 wide, space between columns included
)

_TEX = str.maketrans({
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "≈": r"$\approx$", "×": r"$\times$", "η": r"$\eta$", "·": r"$\cdot$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "<": r"$<$", ">": r"$>$", "\n": " ",
    **{digit: rf"\textsuperscript{{{n}}}" for n, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
})  # fmt: skip


# é, ≥ and α as what pdflatex knows by itself; a letter that has no such form is written as its code point.
_BEYOND_ASCII = UnicodeToLatexEncoder(non_ascii_only=True, unknown_char_policy="unihex", unknown_char_warning=False)


def _tex(text: str) -> str:
    return str(_BEYOND_ASCII.unicode_to_latex(text.translate(_TEX)))


def _tex_row(cells: Sequence[str]) -> str:
    """A line of a tabular; after \\\\ and a rule a bracket would be read as an option, and a star as a variant."""
    line = " & ".join(cells) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line

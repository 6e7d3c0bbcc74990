"""The frame of a report: headings, tables, notes, and the style of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from loragraft import __version__

_STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--dim:#6b6b70;--line:#dcdce0;--paper:#fff;--card:#f6f6f8;
--a:#2563eb;--b:#d9480f;--c:#2b8a3e;--grid:#e6e6ea}
@media (prefers-color-scheme:dark){:root{--ink:#ececf0;--dim:#9a9aa3;--line:#3a3a42;--paper:#151518;--card:#1e1e23;
--a:#7aa2ff;--b:#ff9a62;--c:#7bd88f;--grid:#2c2c33}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.25rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.5rem 0}.lead{background:var(--card);border-left:4px solid var(--a);padding:.75rem 1rem;border-radius:4px}
.dim,footer{color:var(--dim);font-size:.875rem}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:.75rem}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{color:var(--dim);font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
tr.on td{font-weight:600}td.wide{white-space:normal;overflow-wrap:anywhere;min-width:12rem}
figure{margin:.5rem 0}svg{width:100%;height:auto;display:block}svg.phone{display:none}
svg text,svg .dim{font:12px system-ui,sans-serif}svg text{fill:var(--ink)}svg text.dim{fill:var(--dim)}
@media (max-width:36rem){svg.desk{display:none}svg.phone{display:block}svg .aside{display:none}}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--line)}
svg .a{stroke:var(--a);fill:var(--a)}svg .b{stroke:var(--b);fill:var(--b)}svg .c{stroke:var(--c);fill:var(--c)}
svg .line{fill:none;stroke-width:1.5}svg .limit{stroke:var(--dim);stroke-dasharray:4 4}
details summary{cursor:pointer;color:var(--a);padding:.25rem 0}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}
@media print{details:not([open])>*{display:block}}
"""


@dataclass
class Page:
    """`parts` are HTML already; the other texts are not."""

    title: str
    lead: str = ""
    parts: list[str] = field(default_factory=list)

    def add(self, heading: str, *parts: str) -> None:
        self.parts.append(f"<h2>{text(heading)}</h2>" + "".join(parts))

    def html(self) -> str:
        lead = f'<p class="lead">{text(self.lead)}</p>' if self.lead else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            f"<title>{text(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{text(self.title)}</h1>\n{lead}\n" + "\n".join(self.parts) + "\n<footer>"
            f"loragraft {text(__version__)}</footer>\n</main>\n</body>\n</html>\n"
        )


def text(words: object) -> str:
    """Anybody's words, as HTML that means only itself."""
    return escape("".join(each if each.isprintable() or each == "\n" else "�" for each in str(words)))


def paragraph(words: object, *, dim: bool = False) -> str:
    return f'<p class="dim">{text(words)}</p>' if dim else f"<p>{text(words)}</p>"


def bullets(items: Iterable[object]) -> str:
    listed = "".join(f"<li>{text(item)}</li>" for item in items)
    return f"<ul>{listed}</ul>" if listed else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, marked: int | None = None) -> str:
    """A heading that begins with `>` is of numbers, with `~` of long texts; row `marked` stands out."""
    classes = [{">": ' class="n"', "~": ' class="wide"'}.get(heading[:1], "") for heading in headings]
    head = "".join(
        f"<th{kind}>{text(heading.lstrip('>~'))}</th>"
        for kind, heading in zip(classes, headings, strict=True)
    )
    body = "".join(
        ('<tr class="on">' if number == marked else "<tr>")
        + "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(classes, row, strict=True))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(summary: str, *parts: str) -> str:
    """What not everybody wants to see at once."""
    return f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>"

"""The sections of a paper's README.md as HTML. HTML in it stays text, and links lead to the web or inside the site."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from benchmarks.paper import paths
from benchmarks.site.readme import BLOCK

COMMENT = re.compile(r"<!--.*?-->", re.S)
SCHEMES = ("http", "https", "mailto")


@dataclass(frozen=True)
class Section:
    """One `## title` of a README and what stands below it."""

    title: str
    html: Markup

    @property
    def is_idea(self) -> bool:
        return bool(re.fullmatch(r"(the )?idea", self.title, re.I))


def sections(slug: str, pages: set[str]) -> list[Section]:
    """The sections of a paper's README without its generated blocks; none when there is no README.

    pages: slugs that have a page of their own, to which links to another paper's folder lead.
    """
    file = paths.room(slug) / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(COMMENT.sub("", BLOCK.sub("", text)))
    heads = [i for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"]
    found = []
    for start, end in zip(heads, [*heads[1:], len(tokens)]):
        title = _plain(tokens[start + 1])
        body = _prepared(tokens[start + 3 : end], title, pages)
        if body:
            found.append(Section(title, Markup(reader.renderer.render(body, reader.options, {}))))
    return found


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [] if child.content)


def _prepared(tokens: list[Token], title: str, pages: set[str]) -> list[Token]:
    """The tokens with headings one level down, links checked, images as their text, tables in boxes that scroll."""
    prepared: list[Token] = []
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "inline":
            token.children = _checked(token.children or [], pages)
        if token.type == "table_open":
            box = Token("box_open", "div", 1, attrs={"class": "scroll", "role": "region", "tabindex": "0"}, block=True)
            box.attrSet("aria-label", f"{title}, table")
            prepared.append(box)
        prepared.append(token)
        if token.type == "table_close":
            prepared.append(Token("box_close", "div", -1, block=True))
    return prepared


def _checked(children: list[Token], pages: set[str]) -> list[Token]:
    kept: list[Token] = []
    links: list[bool] = []
    for child in children:
        if child.type == "image":
            child = Token("text", "", 0, content=child.content)
        elif child.type == "link_open":
            target = _target(str(child.attrGet("href") or ""), pages)
            links.append(target is not None)
            if target is not None:
                child.attrSet("href", target)
        if child.type not in ("link_open", "link_close") or links[-1]:
            kept.append(child)
        if child.type == "link_close":
            links.pop()
    return kept


def _target(href: str, pages: set[str]) -> str | None:
    """Where a link may lead from a page of the site: the web, or another paper's page. None: only its text is kept."""
    try:
        scheme = urlsplit(href).scheme.lower()
    except ValueError:
        return None
    if scheme in SCHEMES:
        return href
    room = re.fullmatch(r"\.\./(\w+)/(?:README\.md)?", href)
    return f"{room[1]}.html" if room and room[1] in pages else None

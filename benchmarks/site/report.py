"""`encore report`: a static site about all papers that opens from disk and needs no network.

    DIR/index.html            every paper, with filter and search; reported against ours; what builds on what
    DIR/papers/<slug>.html    one paper
    DIR/speed.html            speed and memory against public classes, once benchmarks/speed/results.json is there
    DIR/assets/               style and script

Every file is written whole or not at all, the overview last, so that its links lead somewhere.
"""

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.history.history import History
from benchmarks.paper import catalog, paths
from benchmarks.paper.files import write_atomic
from benchmarks.run.provenance import commit
from benchmarks.run.standing import Standing, interval_text, number, signed, spoken, value_text
from benchmarks.site import views
from benchmarks.site.drawn import Drawn
from benchmarks.site.scatter import comparables, scatter
from benchmarks.site.speed import SpeedView, mebibytes, milliseconds, speed_view
from benchmarks.site.views import PaperView
from common.errors import EncoreError

GENERATOR = "Encore report"
TEMPLATES = Path(__file__).with_name("templates")


def write_report(folder: Path | None = None) -> Path:
    """Write the site about every paper's committed results into `folder` (default reports/); returns its index.html."""
    folder = folder or paths.root() / "reports"
    if folder.suffix in (".html", ".htm"):
        raise EncoreError(f"--out {folder}: give the folder of the site, for example {folder.parent / 'site'}")
    standings = [Standing(paper) for paper in catalog.load_all().values()]
    pages = {standing.paper.slug for standing in standings}
    _refuse_foreign(folder, pages)
    history, drawn, edges = History([s.paper for s in standings]), Drawn(), views.builds_on(standings)
    environment = _environment()
    speed = speed_view(drawn, pages)
    shared = {
        "speed": speed,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "pages": pages,
    }

    for asset in sorted((TEMPLATES / "assets").iterdir()):
        write_atomic(folder / "assets" / asset.name, asset.read_text(encoding="utf-8"))
    shown = [views.paper_view(standing, history, drawn, edges, pages) for standing in standings]
    template = environment.get_template("paper.html")
    for view in shown:
        notes = [section for section in view.sections if not section.is_idea]
        page = template.render(
            view=view,
            notes=notes,
            history=history,
            contents=_contents(view),
            outcomes=_outcomes([view]),
            up="../",
            here=view.standing.paper.slug,
            **shared,
        )
        write_atomic(folder / "papers" / f"{view.standing.paper.slug}.html", page)
    if speed:
        contents = _speed_contents(speed)
        page = environment.get_template("speed.html").render(contents=contents, up="", here="speed", **shared)
        write_atomic(folder / "speed.html", page)
    page = environment.get_template("index.html").render(
        **_overview(shown, edges, drawn), up="", here="index", **shared
    )
    write_atomic(folder / "index.html", page)
    kept = {folder / "papers" / f"{slug}.html" for slug in pages} | ({folder / "speed.html"} if speed else set())
    _remove_own_pages_except(kept, folder)
    drawn.save()
    return folder / "index.html"


def _refuse_foreign(folder: Path, slugs: set[str]) -> None:
    """EncoreError when a file that the report would write over is somebody else's."""
    pages = [folder / "index.html", folder / "speed.html", *(folder / "papers" / f"{slug}.html" for slug in slugs)]
    found = [page for page in pages if page.exists()]
    foreign = [page for page in found if not _is_ours(page)]
    if not (folder / "index.html").exists():  # no report of ours was finished here
        for asset in sorted((TEMPLATES / "assets").iterdir()):
            other = folder / "assets" / asset.name
            foreign += [other] if other.exists() and other.read_bytes() != asset.read_bytes() else []
    if foreign:
        raise EncoreError(f"{foreign[0]}: was not written by a report; choose another folder with --out")


def _is_ours(page: Path) -> bool:
    return page.is_file() and f'content="{GENERATOR}"' in page.read_text(encoding="utf-8", errors="replace")


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{"number": number, "signed": signed, "interval": interval_text, "percent": percent, "spoken": spoken},
        "value": value_text,
        **{
            "milliseconds": milliseconds,
            "mebibytes": mebibytes,
            "ours": views.ours,
            "names": names,
            "is_repository": is_repository,
        },
    }
    environment.globals |= {"commands": views.commands, "verdict_names": verdict_names, "generator": GENERATOR}
    return environment


def _overview(shown: list[PaperView], edges: list[tuple[str, str]], drawn: Drawn) -> dict[str, Any]:
    standings = [view.standing for view in shown]
    points = comparables(standings)
    return {
        "views": shown,
        "matches": sum(standing.matches for standing in standings),
        "facts": sum(len(standing.paper.facts) for standing in standings),
        "claims": _outcomes(shown),
        "rows": dict(Counter(row.verdict for standing in standings for row in standing.rows).most_common()),
        "modalities": sorted({modality for standing in standings for modality in standing.paper.modality}),
        "years": sorted({standing.paper.year for standing in standings}, reverse=True),
        "outcomes": sorted({name for standing in standings for name in verdict_names(standing)}),
        "points": points,
        "scatter": scatter(points, drawn),
        "edges": edges,
        "graph": views.graph(edges, drawn) if edges else None,
    }


def _outcomes(shown: list[PaperView]) -> dict[str, int]:
    """{verdict: how many claims have it}."""
    return dict(Counter(v.verdict for view in shown for v in view.standing.verdicts.values()).most_common())


def _contents(view: PaperView) -> list[tuple[str, str]]:
    """(anchor, name) of the sections the page has, in its order."""
    paper = view.standing.paper
    sections: list[tuple[str, str, object]] = [
        ("idea", "Idea", any(section.is_idea for section in view.sections)),
        ("gallery", "Gallery", view.gallery),
        ("architecture", "Architecture", view.sizes),
        ("facts", "Facts", paper.facts),
        ("recipe", "Recipe", paper.recipe),
        ("claims", "Claims", paper.claims),
        ("measurements", "Measurements", paper.measurements),
        ("numbers", "Reported numbers", paper.reported),
        ("choices", "Our choices", paper.choices),
        ("notes", "Notes", any(not section.is_idea for section in view.sections)),
        ("builds", "What it builds on", True),
        ("limits", "Limits", paper.limits),
        ("missing", "Missing", view.standing.missing),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


def _speed_contents(speed: SpeedView) -> list[tuple[str, str]]:
    """(anchor, name) of the sections speed.html has, in its order."""
    sections: list[tuple[str, str, object]] = [
        ("rows", "Against public classes", speed.parts),
        ("how", "How it is measured", speed.parts),
        ("claims", "The papers' claims", speed.ratios),
        ("growth", "Growth of a step", speed.growth),
        ("sources", "Where it ran", True),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


def verdict_names(standing: Standing) -> list[str]:
    """What the overview filters by: the verdicts among a paper's claims."""
    return list(dict.fromkeys(v.verdict for v in standing.verdicts.values())) or ["no claims"]


def names(authors: str | list[str]) -> str:
    return authors if isinstance(authors, str) else ", ".join(authors)


def is_repository(code: str) -> bool:
    """Whether it is owner/name, which lives at one known place."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", code, re.ASCII) is not None


def percent(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.4g} %"


def _remove_own_pages_except(kept: set[Path], folder: Path) -> None:
    """What an earlier report wrote about a paper or figures that are gone."""
    for file in {*(folder / "papers").glob("*.html"), *folder.glob("speed.html")} - kept:
        if _is_ours(file):
            file.unlink()

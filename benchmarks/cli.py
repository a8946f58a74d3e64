"""The command `encore`. Every command imports what it needs when it runs, so that help, list and show start at once."""

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.history import remembered
from benchmarks.paper import paths
from benchmarks.paper.choices import DEFAULT_PAPER, ENGINES, SCALES, pick
from common.errors import EncoreError

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.paper.schema import Paper
    from benchmarks.run.standing import Standing

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Papers, played again: what each one reported and what this code gives.",
)


def _slugs(incomplete: str) -> list[str]:
    names = [file.parent.name for file in sorted((paths.root() / "papers").glob("*/paper.yaml"))]
    return [name for name in [*names, "all"] if name.startswith(incomplete)]


def _scales(incomplete: str) -> list[str]:
    return [scale for scale in SCALES if scale.startswith(incomplete)]


def _engines(incomplete: str) -> list[str]:
    return [engine for engine in ENGINES if engine.startswith(incomplete)]


PaperName = Annotated[str, typer.Argument(help="slug of a paper, see `encore list`", autocompletion=_slugs)]
PapersName = Annotated[str, typer.Argument(help="slug of a paper, or all", autocompletion=_slugs)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for other programs")]
Scale = Annotated[
    str, typer.Option(help="smoke (seconds), cpu (minutes), gpu, paper (the published recipe)", autocompletion=_scales)
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="configuration of the run, where neither the checkpoint nor a config.yaml has it")
]


@app.command("list")
def list_papers(as_json: AsJson = False) -> None:
    """All papers with their facts, verdicts and missing parts."""
    if as_json:
        print(remembered.text_of("list --json", lambda: _json([standing.brief() for standing in _standings()])))
    else:
        remembered.print_drawn("list", _draw_list)


@app.command()
def show(paper: PaperName, as_json: AsJson = False) -> None:
    """One paper: claims, reported numbers beside ours, choices, missing parts."""
    if as_json:
        print(remembered.text_of(f"show {paper} --json", lambda: _json(_standings(paper)[0].full())))
    else:
        remembered.print_drawn(f"show {paper}", lambda console: _draw_show(console, paper))


@app.command()
def facts(paper: PapersName = "all", as_json: AsJson = False) -> None:
    """Compare every published size with the model built on the meta device, and every recipe row with the configs."""
    from benchmarks.paper import catalog, recipe
    from benchmarks.paper.facts import compute

    out: list[dict[str, Any]] = []
    wrong: list[str] = []
    for each in catalog.select(paper):
        results, constants = compute(each), recipe.compute(each)
        named = [(found.id, found) for found in results] + [(found.where, found) for found in constants]
        wrong += [f"{each.slug} {n}: {f.verdict} {f.error}".rstrip() for n, f in named if f.verdict != "match"]
        for keys, part in ((("id", "quantity"), results), (("where",), constants)):
            shown = (*keys, "reported", "computed", "verdict")
            out += [{"paper": each.slug, **{key: getattr(found, key) for key in shown}} for found in part]
        if not as_json:
            from benchmarks.run.table import console, facts_table, recipe_table

            console().print(facts_table(each.slug, results))
            if constants:
                console().print(recipe_table(each.slug, constants))
    if as_json:
        _print_json(out)
    else:
        for kind, key in (("facts", "id"), ("recipe rows", "where")):
            found = [item["verdict"] for item in out if key in item]
            print(f"{found.count('match')} of {len(found)} {kind} match")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


@app.command()
def reproduce(
    paper: PapersName = DEFAULT_PAPER,
    scale: Scale = "cpu",
    claim: Annotated[str, typer.Option(help="only this claim or measurement")] = "",
    measurements: Annotated[
        bool, typer.Option("--measurements", help="also the runs that stand beside reported rows")
    ] = False,
    seeds: Annotated[str, typer.Option(help="only these seeds, for example 0,1")] = "",
    workers: Annotated[int, typer.Option(min=0, help="units at a time; 0: one a core")] = 0,
    force: Annotated[bool, typer.Option("--force", help="run units again whose result in runs/ is fresh")] = False,
    engine: Annotated[
        str, typer.Option(help="where units run: local, ray (RAY_ADDRESS), slurm", autocompletion=_engines)
    ] = "local",
    plan: Annotated[bool, typer.Option("--plan", help="only show what would run and what it would cost")] = False,
    budget: Annotated[
        str, typer.Option(help="only what fits, for example 30m; first what the committed results lack")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run the claims of a paper and put the result beside what it reported and what is committed.

    A run goes to runs/ and changes no committed result (`encore record` does). What has a fresh result in runs/ is not
    run again, so stopped and started again it goes on; --plan and --budget count the rest.
    """
    pick(scale, dict.fromkeys(SCALES), "scale")
    pick(engine, dict.fromkeys(ENGINES), "engine")
    if as_json and not plan:
        raise EncoreError("--json goes with --plan; results as JSON: encore show PAPER --json")
    from benchmarks.paper import catalog

    papers = catalog.select(paper)
    if scale == "paper":
        return _print_recipes(papers)
    from benchmarks.run.plan import duration
    from benchmarks.run.reproduce import reproduce as run
    from benchmarks.run.reproduce import show_plan

    choice: dict[str, Any] = {
        **{"scale": scale, "only": claim, "measurements": measurements, "seeds": _seeds(seeds)},
        **{"workers": workers, "force": force, "budget": duration(budget) if budget else None},
    }
    if plan:
        return show_plan(papers, **choice, as_json=as_json)
    status = run(papers, **choice, engine=engine)
    raise typer.Exit(_write_report() or status if status < 128 else status)


@app.command()
def record(
    paper: PapersName = "all",
    claim: Annotated[str, typer.Argument(help="only this claim or measurement")] = "",
) -> None:
    """Take complete runs at scale cpu from runs/ into benchmarks/results/, where list, show and report read them."""
    from benchmarks.paper import catalog
    from benchmarks.run.records import has_run, record_run

    papers = catalog.select(paper)
    wanted = [(each, e) for each in papers for e in ([each.experiment(claim)] if claim else each.experiments)]
    ready = [pair for pair in wanted if claim or has_run(*pair)]
    if not ready:
        raise EncoreError("runs/ has no unit of the present code at scale cpu: encore reproduce PAPER runs them")
    incomplete = []
    for each, experiment in ready:
        try:
            print(paths.shown(record_run(each, experiment)))
        except EncoreError as error:
            incomplete.append(str(error))
    for line in incomplete:
        print(f"error: {line}", file=sys.stderr)
    if incomplete:
        raise typer.Exit(1)


@app.command()
def carry(
    paper: PapersName = "all",
    since: Annotated[str, typer.Option("--from", help="a commit at which results were fresh, if no other is")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="so many of a claim's seeds, the first ones")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would run, against which commit")] = False,
) -> None:
    """Keep results fresh over code that changes no number: compare smoke runs of then and now, bit for bit.

    What was compared with what is written into the result, as `carried`. What moved is named, and exit code 1.
    """
    from benchmarks.paper import catalog
    from benchmarks.run.carry import carry as run
    from benchmarks.run.engines import Interrupted

    try:
        status = run(catalog.select(paper), since=since, seeds=seeds, dry_run=dry_run)
    except Interrupted as stop:
        print(f"{stop}; what was carried is kept, and so are the units of other commits", file=sys.stderr)
        status = stop.status
    raise typer.Exit(status)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    paper: PaperName,
    scale: Scale = "cpu",
    config: Annotated[str, typer.Option(help="a file of the paper's configs/, where a scale has several")] = "",
) -> None:
    """Start the train script of a paper; further arguments go to it (--trainer.max_steps 100, --ckpt_path last)."""
    pick(scale, dict.fromkeys(SCALES), "scale")
    from benchmarks.paper import catalog
    from benchmarks.run.standing import train_command

    loaded = catalog.load_one(paper)
    file = _config(loaded, scale, config)
    if not (paths.room(paper) / "train.py").is_file():
        raise EncoreError(f"{paths.shown(paths.room(paper) / 'train.py')} is not there yet")
    from benchmarks.paper.recipe import started

    command = [sys.executable, "-m", f"papers.{paper}.train", *started(file), *context.args]
    print(f"{train_command(paper, f'configs/{file.name}')} {shlex.join(context.args)}".rstrip(), flush=True)
    os.chdir(paths.root())
    os.execvpe(command[0], command, paths.child_environment())


@app.command()
def export(
    paper: PaperName,
    checkpoint: Annotated[Path, typer.Option(help="a last.ckpt of the paper's train script")],
    out: Annotated[Path, typer.Option(help="folder to write, whole or not at all")],
    config: ConfigFile = None,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export there")] = False,
) -> None:
    """Write a trained model in the public hub's format: model.safetensors, config.json, README.md."""
    from benchmarks.tools.export import export as write

    print(write(paper, checkpoint, out, config, force))


@app.command()
def embed(
    paper: PaperName,
    checkpoint: Annotated[Path, typer.Option(help="a last.ckpt, or a folder that `encore export` wrote")],
    out: Annotated[Path, typer.Option(help="Parquet file to write: path, feature")],
    images: Annotated[Path | None, typer.Option(help="folder of images")] = None,
    audio: Annotated[Path | None, typer.Option(help="folder of audio files")] = None,
    videos: Annotated[Path | None, typer.Option(help="folder of video files")] = None,
    config: ConfigFile = None,
    batch_size: Annotated[int, typer.Option(min=1, help="files at a time")] = 64,
    device: Annotated[str, typer.Option(help="for example cuda")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
) -> None:
    """One feature vector for every file below a folder. Stopped and started again, it goes on."""
    given = {kind: folder for kind, folder in (("images", images), ("audio", audio), ("videos", videos)) if folder}
    if len(given) != 1:
        raise EncoreError("give one of --images, --audio and --videos")
    from benchmarks.tools.embed import embed as write
    from benchmarks.tools.embed import errors_file

    [(kind, folder)] = given.items()
    done = write(paper, checkpoint, folder, kind, out, config=config, batch_size=batch_size, device=device, force=force)
    if done.rows:
        print(f"{out}: {done.rows} {kind}" + (f", {done.reused} of them from an earlier run" if done.reused else ""))
    if done.bad:
        where = f"see {errors_file(out)}" if done.rows else f"all of them, so nothing is written: {done.first_error}"
        print(f"warning: {done.bad} {kind} could not be read, {where}", file=sys.stderr)
    raise typer.Exit(0 if done.rows else 1)


@app.command()
def report(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder of the site; default: reports")] = None,
) -> None:
    """Write a static site about all papers: an overview and a page for each. It opens from disk, without a network."""
    from benchmarks.site.report import write_report

    print(write_report(out))


@app.command()
def gallery(paper: PapersName) -> None:
    """Train a small model of a paper and keep what makes its method visible in the report."""
    from benchmarks.paper import catalog
    from benchmarks.site.gallery import has_one, make

    for each in catalog.select(paper):
        if paper != "all" or has_one(each):
            print(paths.shown(make(each)))


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="a commit, branch or tag")],
    after: Annotated[str, typer.Argument(help="another one; left out: the working tree")] = "",
    as_json: AsJson = False,
) -> None:
    """What changed between the results of two commits: verdicts, gaps, measurements, facts."""
    from benchmarks.history.compare import as_json as compared
    from benchmarks.history.compare import changes, print_changes
    from benchmarks.history.past import Snapshot
    from benchmarks.run.table import console

    one, other = Snapshot(before), Snapshot(after or None)
    found = changes(one, other)
    if as_json:
        return _print_json(compared(one, other, found))
    return print_changes(one, other, found, console())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def speed(context: typer.Context) -> None:
    """Step time, inference and peak memory against public classes at equal weights (--help: its options)."""
    from benchmarks.speed.__main__ import main

    paths.make_importable()
    main(context.args)


@app.command()
def readme(
    check: Annotated[bool, typer.Option("--check", help="change nothing, fail when one is out of date")] = False,
) -> None:
    """Bring the generated blocks of README.md and of every paper's README.md up to date."""
    from benchmarks.site.readme import update

    changed = update(check)
    for file in changed:
        print(
            f"error: {file} is out of date: run `encore readme`" if check else file, file=sys.stderr if check else None
        )
    if check and changed:
        raise typer.Exit(1)


data_app = typer.Typer(no_args_is_help=True, help="Named data sources.")
app.add_typer(data_app, name="data")


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """Every named source: licence, home, and whether its files are here."""
    from common import sources

    found = [
        {
            "name": s.name,
            "description": s.description,
            "licence": s.licence,
            "home": s.home,
            "state": sources.whereabouts(s.name),
        }
        for s in sources.all_sources()
    ]
    if as_json:
        return _print_json(found)
    from rich.table import Table

    from benchmarks.run.table import console

    table = Table("name", "state", "licence", "home", "description")
    for source in found:
        table.add_row(*(source[key] for key in ("name", "state", "licence", "home", "description")))
    console().print(table)
    return None


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="names of sources, see `encore data list`")]) -> None:
    """Find or download the files of named sources and verify their checksums."""
    from common import sources

    for source in [pick(name, {s.name: s for s in sources.all_sources()}, "data source") for name in names]:
        try:
            located = sources.locate(source.name)
        except ConnectionError as error:
            raise EncoreError(str(error)) from error
        for path in located.values():
            print(path)


def _write_report() -> int:
    """Write the site after a run; 1 when its folder takes no file. Another paper's broken file does not count."""
    from benchmarks.site.report import write_report

    try:
        print(f"report of the committed results: {paths.shown(write_report())}")
    except EncoreError as error:
        print(f"error: no report: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: no report: {error.strerror}: {error.filename}", file=sys.stderr)
        return 1
    return 0


def _standings(slug: str | None = None) -> "list[Standing]":
    from benchmarks.paper import catalog
    from benchmarks.run.standing import Standing

    return [Standing(paper) for paper in ([catalog.load_one(slug)] if slug else catalog.load_all().values())]


def _draw_list(console: "Console") -> None:
    from benchmarks.run.table import overview

    standings = _standings()
    console.print(overview(standings) if standings else "no papers yet: see CONTRIBUTING.md")


def _draw_show(console: "Console", slug: str) -> None:
    from benchmarks.run.table import print_standing

    (standing,) = _standings(slug)
    print_standing(standing, console)
    for title, lines in (
        ("our choices", standing.paper.choices),
        ("missing parts", standing.missing),
        ("limits", standing.paper.limits),
    ):
        if lines:
            console.print(f"{title}:", *(f"  - {line}" for line in lines), sep="\n", markup=False)


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def _print_json(content: object) -> None:
    print(_json(content))


def _seeds(text: str) -> list[int] | None:
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise EncoreError(f"--seeds {text!r}: give whole numbers separated by commas, for example 0,1,2")
    return [int(part) for part in dict.fromkeys(parts)] or None


def _config(paper: "Paper", scale: str, name: str) -> Path:
    folder = paths.room(paper.slug) / "configs"
    pattern = "paper*.yaml" if scale == "paper" else f"{scale}.yaml"
    found = {file.name: file for file in sorted(folder.glob("*.yaml" if name else pattern))}
    if name:
        return pick(Path(name).name, found, f"config of {paper.slug}")
    if not found:
        raise EncoreError(f"{paper.slug} has no config for scale {scale} ({paths.shown(folder)}/{pattern})")
    if len(found) > 1:
        raise EncoreError(f"{paper.slug} has several configs for scale {scale}: choose with --config {'|'.join(found)}")
    return next(iter(found.values()))


def _print_recipes(papers: "list[Paper]") -> None:
    """The published recipe takes a cluster and days, so it is shown, and started by `encore train`."""
    from benchmarks.run.standing import train_command

    for paper in papers:
        configs = sorted((paths.room(paper.slug) / "configs").glob("paper*.yaml"))
        print(f"{paper.slug}: the published recipe" if configs else f"{paper.slug}: no paper config yet")
        for config in configs:
            print(f"  {train_command(paper.slug, f'configs/{config.name}')}")
            print(f"  encore train {paper.slug} --scale paper --config {config.name}")


def main() -> None:
    """Entry point of `encore`: bad input ends with one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a name or a title the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be read or written
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

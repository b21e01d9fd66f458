"""Commands that make training data: unistg build, its four stages alone, stats, mix, st-align, prove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from tubelet.scale.job import JobProgress
    from tubelet.unistg.stage_files import StageDone

unistg_app = typer.Typer(
    help="Uni-STG: tubes from captions with coarse times (analyzer, annotator, refiner, filter).",
    no_args_is_help=True,
)


Out = Annotated[Path, typer.Argument(help="Records (.jsonl); drops and counts are written beside it.")]
Recipe = Annotated[Path | None, typer.Option(help="YAML, see recipes/unistg/world.yaml.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the recipe, e.g. filter.max_boxes=2.")
]
Cpus = Annotated[float, typer.Option(help="Ray: CPUs that each of them reserves.")]
Gpus = Annotated[
    float,
    typer.Option(help="GPUs that each of them gets for itself (0.5: two share one); 0: all see the same."),
]
RetryAside = Annotated[
    bool, typer.Option("--retry-aside", help="With --resume: try videos again that were set aside.")
]


@unistg_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for samples, drops, funnel and card.")],
    recipe: Annotated[Path | None, typer.Argument(help="YAML, see recipes/unistg/world.yaml.")] = None,
    settings: Settings = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Processes of the annotator.", min=1)] = 1,
    cpus: Cpus = 1.0,
    gpus: Gpus = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the build in the folder.")] = False,
    retry_aside: RetryAside = False,
) -> None:
    """Captions in, tubes with provenance out; killed at any moment, --resume goes on to the same bytes."""
    from tubelet.unistg.build import build as run
    from tubelet.unistg.recipe import load_unistg_recipe
    from tubelet.unistg.stats import lines, stats

    chosen = load_unistg_recipe(recipe, settings or [])
    try:
        done = run(
            chosen,
            out,
            engine=engine,
            workers=workers,
            cpus=cpus,
            gpus=gpus,
            resume=resume,
            retry_aside=retry_aside,
            report=_teller(),
        )
    except KeyboardInterrupt:
        _interrupted()
    for line in lines(stats(out)):
        typer.echo(line, err=True)
    typer.echo(f"{done.folder}: {done.kept} samples, {done.dropped} dropped")
    if done.broken:
        typer.echo(f"tubelet: {done.broken} lines of captions could not be read", err=True)
    if done.aside:
        typer.echo(f"tubelet: {done.aside} captions were set aside, drops.jsonl says why", err=True)
        raise SystemExit(1)


@unistg_app.command()
def analyze(
    captions: Annotated[Path, typer.Argument(help="Captions: a .jsonl file, or what --kind reads.")],
    out: Out,
    recipe: Recipe = None,
    settings: Settings = None,
    kind: Annotated[str, typer.Option(help="jsonl, internvid, didemo, charades-sta, tacos, ...")] = "jsonl",
    split: Annotated[str, typer.Option(help="Of a dataset.")] = "train",
) -> None:
    """Stage 1: captions in, phrases that can be located out."""
    from tubelet.unistg.captions import CaptionSource
    from tubelet.unistg.recipe import load_unistg_recipe
    from tubelet.unistg.stages import run_analyzer

    chosen = load_unistg_recipe(recipe, settings or [])
    _tell_stage(run_analyzer(CaptionSource(kind, str(captions), split), out, chosen))


@unistg_app.command()
def annotate(
    phrases: Annotated[Path, typer.Argument(help="What analyze wrote.")],
    out: Out,
    recipe: Recipe = None,
    settings: Settings = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    cpus: Cpus = 1.0,
    gpus: Gpus = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job beside OUT.")] = False,
    retry_aside: RetryAside = False,
) -> None:
    """Stage 2: phrases in, their boxes in the sampled frames of the coarse spans out."""
    from tubelet.unistg.recipe import load_unistg_recipe
    from tubelet.unistg.stages import run_annotator

    chosen = load_unistg_recipe(recipe, settings or [])
    try:
        done = run_annotator(
            phrases,
            out,
            chosen,
            engine_name=engine,
            workers=workers,
            cpus=cpus,
            gpus=gpus,
            resume=resume,
            retry_aside=retry_aside,
            report=_teller(),
        )
    except KeyboardInterrupt:
        _interrupted()
    _tell_stage(done)


@unistg_app.command("refine")
def refine_command(
    detected: Annotated[Path, typer.Argument(help="What annotate wrote.")],
    out: Out,
    recipe: Recipe = None,
    settings: Settings = None,
) -> None:
    """Stage 3: boxes in, one box per frame and a tightened span out."""
    from tubelet.unistg.recipe import load_unistg_recipe
    from tubelet.unistg.stages import run_refiner

    _tell_stage(run_refiner(detected, out, load_unistg_recipe(recipe, settings or [])))


@unistg_app.command("filter")
def filter_command(
    refined: Annotated[Path, typer.Argument(help="What refine wrote.")],
    out: Out,
    recipe: Recipe = None,
    settings: Settings = None,
) -> None:
    """Stage 4: tubes in, samples that are good enough to learn from out."""
    from tubelet.unistg.recipe import load_unistg_recipe
    from tubelet.unistg.stages import run_filter

    _tell_stage(run_filter(refined, out, load_unistg_recipe(recipe, settings or [])))


@unistg_app.command("stats")
def show(
    folder: Annotated[Path, typer.Argument(help="A finished build.")],
    plot: Annotated[Path | None, typer.Option(help="Funnel, lengths and box sizes as a picture.")] = None,
) -> None:
    """The funnel, lengths of spans and sizes of boxes of a build."""
    from tubelet.unistg.stats import lines, stats
    from tubelet.unistg.stats import plot as draw

    for line in lines(stats(folder)):
        typer.echo(line)
    if plot is not None:
        draw(folder, plot)


@unistg_app.command("mix")
def mix_command(
    recipe: Annotated[
        Path, typer.Argument(help="YAML: sources, format, proportions; recipes/unistg/mix.yaml.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the mixture, its list, drops and report.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recipe, e.g. format=ms-swift.")
    ] = None,
) -> None:
    """Builds, VTG, REC and conversations in, one training file in the paper's proportions out."""
    from tubelet.unistg.mix import load_mix_recipe, make_mixture

    done = make_mixture(load_mix_recipe(recipe, settings or []), out)
    for title, n in done.report["sources"].items():
        typer.echo(f"{title:32}{n['read']:12,} read{n['usable']:12,} usable{n['drawn']:12,} drawn")
    for task, n in done.report["tasks"].items():
        typer.echo(f"{task:32}{n['weight']:12,g} weight{n['usable']:10,} usable{n['drawn']:12,} drawn")
    typer.echo(f"{done.file}: {done.written} written")
    for reason, count in done.lost.items():
        typer.echo(f"{count:10,}  {reason}", err=True)
    if done.lost:
        typer.echo(
            f"tubelet: {sum(done.lost.values())} could not be used, drops.jsonl says which and why", err=True
        )
        raise SystemExit(1)


@unistg_app.command("st-align")
def st_align(
    recipe: Annotated[Path, typer.Argument(help="YAML: the sources, see tubelet.llava_st.assemble.")],
    out: Annotated[Path, typer.Argument(help="Folder for items, lists (stage1-3.yaml), drops and report.")],
) -> None:
    """ST-Align's task mixture out of public sources, in the official item format."""
    from tubelet.llava_st.assemble import assemble, load_assembly

    report = assemble(load_assembly(recipe), out)
    for stage, kinds in report["stages"].items():
        for kind, n in kinds.items():
            typer.echo(
                f"stage {stage}  {kind:32}{n['items']:12,} items{n['drawn']:12,} drawn{n['paper']:12,} in the paper"
            )
    for reason, count in report["dropped"].items():
        typer.echo(f"{count:10,}  {reason}", err=True)
    for name, count in report["other_kinds"].items():
        typer.echo(f"{count:10,}  conversations of another kind than {name}", err=True)
    if report["broken_records"]:
        typer.echo(f"tubelet: {report['broken_records']} records could not be read", err=True)
        raise SystemExit(1)


@unistg_app.command()
def prove(
    n: Annotated[int, typer.Option(help="Captions, one per scene.", min=2)] = 150,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 11,
    kind: Annotated[
        str, typer.Option(help="presence (while it is in the picture) or event (its action).")
    ] = "presence",
) -> None:
    """Precision of spans and tubes after each stage, on toy-world captions with loose spans."""
    from tubelet.unistg.world_proof import prove as run

    found = run(n, seed, kind)
    for name, row in {**found.stages, **found.gains}.items():
        typer.echo(
            f"{name:28}" + "".join(f"  {metric} {value!s} n={value.n}" for metric, value in row.items())
        )
    for reason, count in found.drops.items():
        typer.echo(f"  {count:6}  {reason}")


def _tell_stage(done: StageDone) -> None:
    for reason, count in done.reasons.items():
        typer.echo(f"{count:10,}  {reason}", err=True)
    typer.echo(f"{done.out}: {done.took} read, {done.gave} written, {done.dropped} dropped")
    where = f"{done.out.stem}.drops.jsonl says which and why"
    if done.broken:
        typer.echo(f"tubelet: {done.broken} lines are no records of the stage before, {where}", err=True)
    if done.aside:
        typer.echo(f"tubelet: {done.aside} phrases were set aside with their videos, {where}", err=True)
    if done.broken or done.aside:
        raise SystemExit(1)


def _interrupted() -> NoReturn:
    typer.echo("tubelet: what is done is kept: the same command with --resume goes on", err=True)
    raise SystemExit(130) from None


def _teller() -> Callable[[JobProgress], None]:
    """A line on stderr for every tenth of the videos."""
    told = 0

    def tell(now: JobProgress) -> None:
        nonlocal told
        tenth = 10 * (now.done + now.aside) // max(now.total, 1)
        if tenth > told:
            told = tenth
            typer.echo(f"{now.done + now.aside}/{now.total} videos, {now.items_per_s:.2f}/s", err=True)

    return tell

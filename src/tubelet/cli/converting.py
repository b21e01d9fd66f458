"""Commands that change a model's layout: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tubelet.errors import QueryError

METHODS = ("llava-st", "llava-next")


def convert(
    method: Annotated[
        str,
        typer.Argument(
            help="What the checkpoint is: llava-st, or llava-next (LLaVA-Video, LLaVA-OneVision)."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="The checkpoint to read.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    to_official: Annotated[
        bool, typer.Option("--to-official", help="Write the published layout instead of tubelet's.")
    ] = False,
    mode: Annotated[
        str,
        typer.Option(help="official (as the published code computes) or fixed; default: the checkpoint's."),
    ] = "",
    vision_heads: Annotated[
        int, typer.Option(help="Attention heads of a vision tower that is not a standard SigLIP; 0: known.")
    ] = 0,
    packer_heads: Annotated[int, typer.Option(help="Attention heads of the packer (llava-st).", min=1)] = 8,
    vision_tower: Annotated[
        Path | None, typer.Option(help="SigLIP folder for a llava-next checkpoint without its tower.")
    ] = None,
) -> None:
    """Published checkpoint to tubelet folder, or back; no bit of a weight changes. Prints what to know about it.

    llava-st goes both ways; llava-next (the layout of the LLaVA-NeXT repository) becomes a LLaVA-OneVision folder, the
    base that a SpaceVLLM starts from.
    """
    if method not in METHODS:
        raise QueryError(f"unknown checkpoint {method!r}; there is: {', '.join(METHODS)}")
    if method == "llava-next":
        if to_official or mode:
            raise QueryError(
                "--to-official and --mode are for llava-st: llava-next is converted in one way only"
            )
        from tubelet.spacevllm.llava_next import convert_llava_next

        for finding in convert_llava_next(folder, out, vision_tower, vision_heads or None):
            typer.echo(str(finding), err=True)
        typer.echo(str(out))
        return
    if vision_tower is not None:
        raise QueryError("--vision-tower is for llava-next: a LLaVA-ST holds its tower")
    from tubelet.llava_st.convert import convert_from_official, convert_to_official
    from tubelet.llava_st.official_layout import OfficialGeometry

    if to_official:
        typer.echo(str(convert_to_official(folder, out)))
        return
    geometry = OfficialGeometry(vision_heads=vision_heads or None, packer_heads=packer_heads)
    for finding in convert_from_official(folder, out, mode or None, geometry):
        typer.echo(str(finding), err=True)
    typer.echo(str(out))

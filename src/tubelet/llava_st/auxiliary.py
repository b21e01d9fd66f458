"""Training-only heads beside a LLaVA-ST that learns from scratch (our addition; never saved with the model).

seen, doing   what stands in each cell of each frame and what it does, read behind the packer's first block and the
              motion layers (`spacevllm.dense`)
match         what a question asks for and what the words of its answer name, against the slow tokens, at a middle
              layer of the language model (`spacevllm.match`)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tubelet.spacevllm.dense import DoingHead, SeenHead
from tubelet.spacevllm.match import Match


@dataclass(frozen=True, slots=True)
class AuxiliaryConfig:
    """
    middle: layer of the language model whose states are compared (0: no match).
    attributes, actions: class counts of the dense labels (none: no such head).
    """

    middle: int = 0
    attributes: tuple[int, ...] = ()
    actions: int = 0


class Auxiliary(nn.Module):  # type: ignore[misc]
    def __init__(self, size: int, config: AuxiliaryConfig) -> None:
        super().__init__()
        self.config = config
        if config.attributes:
            self.seen = SeenHead(size, config.attributes)
        if config.actions:
            self.doing = DoingHead(size, config.actions)
        if config.middle:
            self.match = Match(size)

"""How a model may be run."""

from dataclasses import dataclass

from grpovi_lightning.models.passes.output_head import FusedHead, SeparateHead


@dataclass(frozen=True)
class Capabilities:
    """What `find_capabilities` found out about a model.

    Attributes:
        parts: the model in two steps, states and logits.
        takes_positions: whether its forward pass takes position ids.
        windows: for each layer of its cache the number of tokens that it sees; None: all. Empty where the cache keeps
            something other than keys and values.
        shares_prefix: whether the cache of a prompt can be expanded to the completions of its group.
        decodes_by_groups: whether its attention can be computed group by group while decoding.
    """

    parts: SeparateHead | FusedHead
    takes_positions: bool
    windows: tuple[int | None, ...] = ()
    shares_prefix: bool = False
    decodes_by_groups: bool = False

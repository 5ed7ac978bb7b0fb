"""Pure tensor functions: masked reductions, log-probabilities, padding."""

from grpovi_lightning.ops.logprobs import TokenStatistics, chunked_statistics, token_statistics
from grpovi_lightning.ops.masked import masked_mean, masked_sum
from grpovi_lightning.ops.padding import pad_left, pad_right, position_ids
from grpovi_lightning.ops.pass_at import pass_at

__all__ = [
    "TokenStatistics",
    "chunked_statistics",
    "masked_mean",
    "masked_sum",
    "pad_left",
    "pad_right",
    "pass_at",
    "position_ids",
    "token_statistics",
]

"""The k largest of every row, without sorting or selecting through whole rows."""

import torch
from torch import Tensor

GROUP = 32  # entries that are first compared with each other


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest entries of each row, and whether the choice was unique.

    scores (n, m), 1 <= k <= m. Returns values (n, k) descending, indices (n, k), and (n,) boolean: True where further
    entries equal the k-th value, so that the indices are one choice of several. The k largest lie in the k groups
    with the largest maxima; a group is every (m / 32)-th entry, so that its maximum is taken over whole rows at once.
    """
    groups = scores.shape[1] // GROUP
    if groups <= k:
        best, index = scores.topk(min(k + 1, scores.shape[1]), dim=1)
        return best[:, :k], index[:, :k], (best[:, k:] == best[:, k - 1 : k]).any(dim=1)
    cut = groups * GROUP
    maxima = scores[:, :cut].unflatten(1, (GROUP, groups)).amax(dim=1)
    group_best, group = maxima.topk(k + 1, dim=1)
    offsets = torch.arange(0, cut, groups, device=scores.device)
    rest = torch.arange(cut, scores.shape[1], device=scores.device).expand(len(scores), -1)
    candidates = torch.cat([(group[:, :k, None] + offsets).flatten(1), rest], dim=1)
    best, place = scores.gather(1, candidates).topk(k + 1, dim=1)
    tied = (best[:, k] == best[:, k - 1]) | (group_best[:, k] >= best[:, k - 1])
    return best[:, :k], candidates.gather(1, place[:, :k]), tied

"""IMSVD: latent variables softly discretised into bins, trained through their joint entropies over two views.

Source: arXiv 2501.03469 and its public code.
"""

from __future__ import annotations

from pretrain.objectives.segments import JointEntropy, joint_entropy_loss

__all__ = ["IMSVD", "joint_entropy_loss"]


class IMSVD(JointEntropy):
    """IMSVD: `bins` is the number of bins k of each variable."""

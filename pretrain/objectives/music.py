"""MUSIC: multi-segmental informational coding, arXiv 2206.06461.

Only abstract, introduction and patent claims could be read: segments normalised by softmax, an empirical joint
distribution of two views, information measures as the signal, two views, no asymmetry, no momentum branch. The loss is
inferred to be that of IMSVD (same first author, same names of terms) with segments for variables, and its
hyper-parameters are IMSVD's: every result carries that label.
"""

from __future__ import annotations

from pretrain.objectives.segments import JointEntropy


class Music(JointEntropy):
    """MUSIC with the inferred loss; `bins` is the number of attributes of a segment."""

    label = "inferred loss and IMSVD hyper-parameters"

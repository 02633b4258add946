"""Benchmark tasks, one file each; `base` says what a task is.

knn, retrieval, hamming, linear (and linear_cached) score frozen features. objects (MaskCut), video (label propagation)
and dense_retrieval (in-context segmentation) hold the mathematics of the dense tasks.
"""

"""Average precision of whole rankings on the CPU, in numba: exact, parallel over queries, ties by database index.

A float32 score becomes a 32-bit integer that sorts in descending order of score. Where few items are relevant, their
ranks are counted without sorting the rest; otherwise keys are radix-sorted, which is stable and so keeps index order.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

INDEX, AVERAGE, GROUP = 0, 1, 2
TIES = {"index": INDEX, "average": AVERAGE, "group": GROUP}
BITS = 11  # three passes of 11 bits cover a 32-bit key
COUNTING_SHARE = 16  # rank by counting when fewer than 1/16 of the database is relevant


@njit(cache=True, inline="always")
def descending_key(word):
    """The bits of a float32 as a uint32 that grows while the score falls; -0.0 equals 0.0."""
    word = np.uint32(0) if word == np.uint32(0x80000000) else word
    return word if word >= np.uint32(0x80000000) else word ^ np.uint32(0x7FFFFFFF)


@njit(cache=True)
def radix_sort(a, b, n, histogram):
    """Sort a[:n], values key << 1 | flag, stably by their 32-bit keys with b as scratch; the result lies in b.

    The flag takes no part: items of equal key must keep their order whether relevant or not.
    """
    size, mask = np.int64(1 << BITS), np.int64((1 << BITS) - 1)
    histogram[:] = 0
    for j in range(n):
        v = np.int64(a[j])
        histogram[0, (v >> 1) & mask] += 1
        histogram[1, (v >> (1 + BITS)) & mask] += 1
        histogram[2, v >> (1 + 2 * BITS)] += 1
    for p in range(3):
        total = np.int64(0)
        for v in range(size):
            count = histogram[p, v]
            histogram[p, v] = total
            total += count
    for j in range(n):
        d = (np.int64(a[j]) >> 1) & mask
        b[histogram[0, d]] = a[j]
        histogram[0, d] += 1
    for j in range(n):
        d = (np.int64(b[j]) >> (1 + BITS)) & mask
        a[histogram[1, d]] = b[j]
        histogram[1, d] += 1
    for j in range(n):
        d = np.int64(a[j]) >> (1 + 2 * BITS)
        b[histogram[2, d]] = a[j]
        histogram[2, d] += 1


@njit(cache=True)
def sorted_ap(ranked, n, relevant, ties):
    """AP of a ranking given as sorted values key << 1 | flag, with `relevant` flags set in all."""
    total, found, j = 0.0, np.int64(0), np.int64(0)
    while j < n:
        end = j + 1
        if ties == INDEX:
            if ranked[j] & 1:
                found += 1
                total += found / end
            j = end
            continue
        inside = np.int64(ranked[j] & 1)
        while end < n and (ranked[end] >> 1) == (ranked[j] >> 1):
            inside += ranked[end] & 1
            end += 1
        if inside:
            total += group_precision(j, end - j, found, inside, ties)
        found += inside
        j = end
    return total / relevant


@njit(cache=True, inline="always")
def group_precision(ahead, n, found, r, ties):
    """Precision summed over the r relevant of a tied group of n, with `ahead` items, `found` relevant, before it.

    `average` is the expectation over all orders of the group: a relevant item stands at place i with chance r/n, and
    then (i - 1)(r - 1)/(n - 1) relevant ones of the group stand before it on average.
    """
    if ties == GROUP:
        return r * (found + r) / (ahead + n)
    slope = (r - 1) / (n - 1) if n > 1 else 0.0
    total = 0.0
    for i in range(1, n + 1):
        total += (found + 1 + (i - 1) * slope) / (ahead + i)
    return total * r / n


@njit(cache=True)
def counted_ap(scores, members, skip, keys, ahead, starts):
    """AP of one query from its few relevant items (`members`, ascending): how many items precede each, no sort of all.

    The sorted keys of the relevant items are cut into equal score intervals; every item finds its interval by one
    multiplication and then walks, so the pass over the database costs about one table look-up an item.
    """
    r, words = 0, scores.view(np.uint32)
    for m in members:
        if m != skip:
            keys[r] = rank_key(words[m], m)
            r += 1
    if r == 0:
        return np.nan
    keys[:r].sort()
    top = np.float64(scores[keys[0] & np.uint64(0xFFFFFFFF)])
    bottom = np.float64(scores[keys[r - 1] & np.uint64(0xFFFFFFFF)])
    intervals = len(starts) - 1
    scale = (intervals - 1) / (top - bottom) if top > bottom else 0.0
    starts[:] = 0
    for p in range(r):
        starts[np.int64((top - scores[keys[p] & np.uint64(0xFFFFFFFF)]) * scale) + 1] += 1
    for v in range(intervals):
        starts[v + 1] += starts[v]
    # ahead[p]: items after relevant item p - 1 and up to relevant item p, itself included, in ranking order.
    ahead[: r + 1] = 0
    for j in range(len(scores)):
        s = np.float64(scores[j])
        if s >= bottom:
            p = np.int64(0)
            if s <= top:
                v = np.int64((top - s) * scale)
                p, end, key = starts[v], starts[v + 1], rank_key(words[j], j)
                while end - p > 8:
                    middle = (p + end) // 2
                    if keys[middle] < key:
                        p = middle + 1
                    else:
                        end = middle
                while p < end and keys[p] < key:
                    p += 1
            ahead[p] += 1
    if skip >= 0 and scores[skip] >= bottom:
        ahead[np.searchsorted(keys[:r], rank_key(words[skip], skip))] -= 1
    total, rank = 0.0, np.int64(0)
    for p in range(r):
        rank += ahead[p]
        total += (p + 1) / rank
    return total / r


@njit(cache=True, inline="always")
def rank_key(word, index):
    """One integer that sorts by descending score, then by ascending index."""
    return (np.uint64(descending_key(word)) << np.uint64(32)) | np.uint64(index)


@njit(cache=True, parallel=True)
def single_label_ap(scores, labels, skips, order, offsets, out):
    """AP (ties by index) per row of scores (Q, N) for classes listed as order[offsets[c]:offsets[c + 1]]."""
    n = scores.shape[1]
    for i in prange(scores.shape[0]):
        out[i] = np.nan
        c = labels[i]
        if c < len(offsets) - 1:
            members = order[offsets[c] : offsets[c + 1]]
            r = len(members)
            if r * COUNTING_SHARE < n:
                intervals = 64
                while intervals < 4 * r:
                    intervals *= 2
                keys, ahead = np.empty(r, np.uint64), np.empty(r + 1, np.int64)
                out[i] = counted_ap(scores[i], members, skips[i], keys, ahead, np.empty(intervals + 1, np.int64))
            else:
                flags = np.zeros(n, np.uint8)
                flags[members] = 1
                out[i] = flagged_ap(scores[i], flags, skips[i], INDEX)


@njit(cache=True, parallel=True)
def multi_label_ap(scores, query_sets, database_sets, skips, out):
    """AP (ties by index) per row; class sets are bit sets, (Q, W) and (W, N) uint64."""
    for i in prange(scores.shape[0]):
        n = scores.shape[1]
        shared = np.zeros(n, np.uint64)
        for w in range(query_sets.shape[1]):
            chosen = query_sets[i, w]
            for j in range(n):
                shared[j] |= chosen & database_sets[w, j]
        flags = np.empty(n, np.uint8)
        for j in range(n):
            flags[j] = shared[j] != 0
        out[i] = flagged_ap(scores[i], flags, skips[i], INDEX)


@njit(cache=True, parallel=True)
def ranking_rows_ap(scores, relevant, ties, out):
    """AP per row of scores (Q, N) with explicit relevance (Q, N) uint8."""
    for i in prange(scores.shape[0]):
        out[i] = flagged_ap(scores[i], relevant[i], np.int64(-1), ties)


@njit(cache=True)
def flagged_ap(scores, flags, skip, ties):
    """AP of one row of scores by a full stable sort; item `skip` is left out (-1: none)."""
    words = scores.view(np.uint32)
    low, high, r = np.uint32(0xFFFFFFFF), np.uint32(0), np.int64(0)
    for j in range(len(words)):
        key = descending_key(words[j])
        low, high = min(low, key), max(high, key)
        r += flags[j]
    if skip >= 0:
        r -= flags[skip]
    if r == 0:
        return np.nan
    histogram = np.empty((3, 1 << BITS), np.int64)
    if high - low < np.uint32(0x7FFFFFFF):
        narrow, scratch = np.empty(len(words), np.uint32), np.empty(len(words), np.uint32)
        count = pack_keys(words, flags, skip, low, narrow)
        radix_sort(narrow, scratch, count, histogram)
        return sorted_ap(scratch, count, r, ties)
    wide, wide_scratch = np.empty(len(words), np.uint64), np.empty(len(words), np.uint64)
    count = pack_keys(words, flags, skip, low, wide)
    radix_sort(wide, wide_scratch, count, histogram)
    return sorted_ap(wide_scratch, count, r, ties)


@njit(cache=True)
def pack_keys(words, flags, skip, low, packed):
    """Write (key - low) << 1 | flag for every item but `skip`; returns how many."""
    one, count = packed.dtype.type(1), 0
    for j in range(len(words)):
        if j != skip:
            packed[count] = (packed.dtype.type(descending_key(words[j]) - low) << one) | packed.dtype.type(flags[j])
            count += 1
    return count

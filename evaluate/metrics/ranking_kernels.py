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
LOW_WORD = np.int64(0xFFFFFFFF)
BLOCK = 1_024  # items whose intervals are computed together
INTERVALS = 4_096  # two tables of these stay in the first-level cache
COUNTING_SHARE = 16  # rank by counting when fewer than 1/16 of the database is relevant


@njit(cache=True)
def descending_key(word):
    """The bits of a float32 as a uint32 that grows while the score falls; -0.0 equals 0.0."""
    word = np.uint32(0) if word == np.uint32(0x80000000) else word
    return word if word >= np.uint32(0x80000000) else word ^ np.uint32(0x7FFFFFFF)


@njit(cache=True)
def digit(value, place):
    """Digit `place` (0 to 2) of the key in key << 1 | flag; unsigned, for a signed index costs a test of its sign."""
    return (np.uint64(value) >> np.uint64(1 + BITS * place)) & np.uint64((1 << BITS) - 1)


@njit(cache=True)
def radix_sort(a, b, n, ends):
    """Sort a[:n], values key << 1 | flag, stably by their 32-bit keys with b as scratch; the result lies in b.

    `ends` is a table of zeros (3, 2048) uint32.

    The flag takes no part: items of equal key must keep their order whether relevant or not.
    """
    for j in range(n):
        ends[0, digit(a[j], 0)] += np.uint32(1)
        ends[1, digit(a[j], 1)] += np.uint32(1)
        ends[2, digit(a[j], 2)] += np.uint32(1)
    for place in range(3):
        total = np.uint32(0)
        for v in range(1 << BITS):
            count = ends[place, v]
            ends[place, v] = total
            total += count
    scatter(a, b, n, ends[0], 0)
    scatter(b, a, n, ends[1], 1)
    scatter(a, b, n, ends[2], 2)


@njit(cache=True)
def scatter(source, target, n, ends, place):
    """One stable pass: move every value behind the values of smaller digit."""
    for j in range(n):
        d = digit(source[j], place)
        at = ends[d]
        ends[d] = at + np.uint32(1)
        target[at] = source[j]


@njit(cache=True)
def sorted_ap(ranked, n, relevant, ties):
    """AP of a ranking given as sorted values key << 1 | flag, with `relevant` flags set in all."""
    total, found, j = 0.0, np.int64(0), np.int64(0)
    while j < n:
        end = j + 1
        if ties == INDEX:
            if ranked[j] & 1:
                found += 1
                total += float(found / end)
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


@njit(cache=True)
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
def counted_ap(scores, members, skip, intervals):
    """AP of one query from its few relevant items (`members`, ascending): how many items precede each, no sort of all.

    The score range of the relevant items is cut into equal intervals (0: above all, the last: below all). Items in an
    interval without a relevant item are only counted; the few others find their place among its relevant items.
    """
    r, words, keys = 0, scores.view(np.uint32), np.empty(len(members), np.int64)
    for m in members:
        if m != skip:
            keys[r] = rank_key(words[m], m)
            r += 1
    if r == 0:
        return np.nan
    sort_keys(keys, r)
    top, bottom = scores[keys[0] & LOW_WORD], scores[keys[r - 1] & LOW_WORD]
    last = intervals - 1
    # Capped, so that 0 * scale stays 0 when all relevant items score the same.
    scale = np.float32(min((last - 2) / max(np.float64(top - bottom), 1e-30), 1e30))
    first, counts = np.zeros(intervals + 1, np.int32), np.zeros(intervals, np.int32)
    for p in range(r):
        first[interval(scores[keys[p] & LOW_WORD], top, scale, last) + 1] += 1
    for v in range(last + 1):
        first[v + 1] += first[v]
    ahead = np.zeros(r + 1, np.int64)
    places = np.empty(BLOCK, np.int32)
    for start in range(0, len(scores), BLOCK):
        size = min(BLOCK, len(scores) - start)
        part = scores[start : start + size]
        for j in range(size):
            places[j] = interval(part[j], top, scale, last)
        for j in range(size):
            v = places[j]
            if first[v] == first[v + 1]:
                counts[v] += 1
            else:
                ahead[place_in(keys, first[v], first[v + 1], rank_key(words[start + j], start + j))] += 1
    if skip >= 0:
        v = interval(scores[skip], top, scale, last)
        if first[v] == first[v + 1]:
            counts[v] -= 1
        else:
            ahead[place_in(keys, first[v], first[v + 1], rank_key(words[skip], skip))] -= 1
    total, rank, p = 0.0, np.int64(0), 0
    for v in range(last):
        rank += counts[v]
        while p < first[v + 1]:
            rank += ahead[p]
            p += 1
            total += p / rank
    return total / r


@njit(cache=True)
def interval(score, top, scale, last):
    """Interval of a score: 0 above `top`, 1 from `top` on, `last` below all; never decreases as the score falls."""
    x = (top - score) * scale + np.float32(1)
    # Written as selections, for min and max mind NaN and would not become vector instructions.
    x = x if x > np.float32(0) else np.float32(0)
    return np.int32(x if x < np.float32(last) else np.float32(last))


@njit(cache=True)
def place_in(keys, p, end, key):
    """How many of the sorted keys lie before `key`, which is known to fall between places p and end."""
    while end - p > 8:
        middle = (p + end) // 2
        if keys[middle] < key:
            p = middle + 1
        else:
            end = middle
    while p < end and keys[p] < key:
        p += 1
    return p


@njit(cache=True)
def rank_key(word, index):
    """One int64 that sorts by descending score, then by ascending index; its low 32 bits are the index."""
    return ((np.int64(descending_key(word)) - np.int64(1 << 31)) << np.int64(32)) | np.int64(index)


@njit(cache=True)
def sort_keys(keys, n):
    """Sort keys[:n] ascending (Shell); numba's own sort takes seconds to compile for every type and caller."""
    gap = n // 2
    while gap > 0:
        for i in range(gap, n):
            key, j = keys[i], i
            while j >= gap and keys[j - gap] > key:
                keys[j] = keys[j - gap]
                j -= gap
            keys[j] = key
        gap = gap * 5 // 11 if gap > 2 else gap // 2


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
                out[i] = counted_ap(scores[i], members, skips[i], max(INTERVALS, 4 * r))
            else:
                flags = np.zeros(n, np.uint8)
                for m in members:
                    flags[m] = 1
                out[i] = flagged_ap(scores[i], flags, skips[i], INDEX)


@njit(cache=True, parallel=True)
def multi_label_ap(scores, query_sets, database_sets, skips, out):
    """AP (ties by index) per row; class sets are bit sets, (Q, W) and (W, N) uint64."""
    for i in prange(scores.shape[0]):
        n = scores.shape[1]
        flags = np.zeros(n, np.uint8)
        for w in range(query_sets.shape[1]):
            chosen = query_sets[i, w]
            for j in range(n):
                flags[j] |= (chosen & database_sets[w, j]) != 0
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
    packed, relevant = np.empty(len(words), np.uint64), np.int64(0)
    for j in range(len(words)):
        packed[j] = (np.uint64(descending_key(words[j])) << np.uint64(1)) | np.uint64(flags[j])
        relevant += flags[j]
    count = len(words)
    if skip >= 0:
        relevant -= flags[skip]
        count -= 1
        for j in range(skip, count):
            packed[j] = packed[j + 1]
    if relevant == 0:
        return np.nan
    scratch = np.empty(count, np.uint64)
    radix_sort(packed, scratch, count, np.zeros((3, 1 << BITS), np.uint32))
    return sorted_ap(scratch, count, relevant, ties)

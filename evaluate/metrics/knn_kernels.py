"""Selection of nearest neighbours and the weighted vote on the CPU, in numba, parallel over queries."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from evaluate.metrics.ranking_kernels import LOW_WORD, rank_key, sort_keys

TEETH = 32  # scores whose maximum is taken together
CAPACITY = 2_048  # candidates scored again before a query is given back


@njit(cache=True, fastmath={"reassoc", "contract"})
def exact_dot(a, b):
    """Dot product of two float32 rows summed in float64: the same for equal rows wherever they lie."""
    total = 0.0
    for j in range(len(a)):
        total += np.float64(a[j]) * np.float64(b[j])
    return np.float32(total)


@njit(cache=True)
def order(word, shift):
    """The bits of a float, a signed integer of 32 - shift bits, as an int64 that grows with the value."""
    v = np.int64(word)
    return v if v >= 0 else np.int64(-1) - (v & (np.int64(0x7FFFFFFF) >> shift))


@njit(cache=True)
def lowered(key, shift, slack, box):
    """The largest key whose value is at most value(key) - slack; keys of a float32 cut by `shift` low bits."""
    word = key << shift
    box.view(np.int32)[0] = np.int32(word) if word >= 0 else np.int32(-0x80000000 + (np.int64(-1) - word))
    box[0] = np.float32(np.float64(box[0]) - slack)
    return order(box.view(np.int32)[0], 0) >> shift


@njit(cache=True)
def select(values, n, place):
    """The value at `place` (0: smallest) of values[:n] in sorted order; smaller ones are moved before it (Hoare)."""
    low, high = 0, n - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@njit(cache=True)
def comb_maxima(words, maxima):
    """Largest signed integer among words[b], words[b + B], words[b + 2 B] ... for each of the B maxima."""
    combs, n = len(maxima), len(words)
    for b in range(combs):
        maxima[b] = words[b]
    for start in range(combs, n, combs):
        # Neighbouring combs advance together, which compiles to one vector instruction for many of them.
        for b in range(min(combs, n - start)):
            maxima[b] = max(maxima[b], words[start + b])


@njit(cache=True)
def candidates_above(words, shift, maxima, threshold, found, keys):
    """Write index and key of every word at or above `threshold`; returns how many, or -1 when they do not fit."""
    count = 0
    for b in range(len(maxima)):
        # A comb without a positive score has no ordered maximum: signed integers order negative floats backwards.
        if maxima[b] >= 0 and np.int64(maxima[b]) < threshold or maxima[b] < 0 and threshold >= 0:
            continue
        for j in range(b, len(words), len(maxima)):
            key = order(words[j], shift)
            if key >= threshold:
                if count == len(found):
                    return -1
                found[count] = j
                keys[count] = key
                count += 1
    return count


@njit(cache=True, parallel=True)
def refine(proposed, rows, queries, slack, scores, indices, places, done):
    """Exact k nearest rows from proposed scores (q, N): float32 bits as int32, or bfloat16 bits as int16.

    With |proposed - exact| <= slack, a row of the true k best proposes at least the k-th best proposal - 2 slack.
    Results go to row places[i] of scores and indices; done[i] stays False when too many rows pass that bar.
    """
    n, k = proposed.shape[1], scores.shape[1]
    shift = 32 - 8 * proposed.itemsize
    combs = max(k, n // TEETH)
    for i in prange(len(proposed)):
        words, box = proposed[i], np.empty(1, np.float32)
        maxima = np.empty(combs, proposed.dtype)
        comb_maxima(words, maxima)
        # k combs reach the k-th largest maximum, so the k-th best score is no lower.
        tops = np.empty(combs, np.int64)
        for b in range(combs):
            tops[b] = maxima[b]
        bar = select(tops, combs, combs - k)
        if bar < 0:
            continue
        found, keys = np.empty(CAPACITY + 8 * k, np.int64), np.empty(CAPACITY + 8 * k, np.int64)
        threshold = lowered(bar, shift, 2.0 * slack[i], box)
        count = candidates_above(words, shift, maxima, threshold, found, keys)
        if count < 0:
            continue
        tops = np.empty(count, np.int64)
        for c in range(count):
            tops[c] = keys[c]
        bar = lowered(select(tops, count, count - k), shift, 2.0 * slack[i], box)
        ranked, kept = np.empty(count, np.int64), 0
        for c in range(count):
            if keys[c] >= bar:
                box[0] = exact_dot(rows[found[c]], queries[i])
                ranked[kept] = rank_key(box.view(np.uint32)[0], found[c])
                kept += 1
        write_best(ranked, kept, rows, queries[i], scores[places[i]], indices[places[i]])
        done[i] = True


@njit(cache=True)
def write_best(ranked, n, rows, query, scores, indices):
    """Sort the first n packed rank keys and write the first k cosines and indices."""
    sort_keys(ranked, n)
    for c in range(len(scores)):
        indices[c] = ranked[c] & LOW_WORD
        scores[c] = exact_dot(rows[indices[c]], query)


@njit(cache=True, parallel=True)
def search_exhaustively(rows, queries, todo, scores, indices):
    """Exact k nearest rows of queries[todo] by scoring every row."""
    for t in prange(len(todo)):
        i = todo[t]
        box, ranked = np.empty(1, np.float32), np.empty(len(rows), np.int64)
        for j in range(len(rows)):
            box[0] = exact_dot(rows[j], queries[i])
            ranked[j] = rank_key(box.view(np.uint32)[0], j)
        k = scores.shape[1]
        select(ranked, len(ranked), k - 1)
        write_best(ranked, k, rows, queries[i], scores[i], indices[i])


@njit(cache=True, parallel=True)
def vote(scores, neighbour_labels, truth, ks, temperature, classes, predictions, places, voted):
    """Weighted votes for ascending ks: winning class, place of the true class (0 = first), and if it has a vote."""
    for i in prange(len(truth)):
        totals, has_vote = np.zeros(classes), np.zeros(classes, np.bool_)
        used, t = 0, truth[i]
        for s in range(len(ks)):
            for c in range(used, ks[s]):
                # The common factor exp(-best / T) keeps the sum finite at any temperature.
                totals[neighbour_labels[i, c]] += np.exp((np.float64(scores[i, c]) - scores[i, 0]) / temperature)
                has_vote[neighbour_labels[i, c]] = True
            used = ks[s]
            place, winner = 0, 0
            for c in range(classes):
                place += totals[c] > totals[t] or (totals[c] == totals[t] and c < t)
                if totals[c] > totals[winner]:
                    winner = c
            predictions[s, i], places[s, i], voted[s, i] = winner, place, has_vote[t]

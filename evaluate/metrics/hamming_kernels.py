"""Average precision by Hamming distance on the CPU, in numba: popcounts and one histogram per query and prefix.

With one class an image (`class_ap`) few items are relevant: all are counted by distance alone, and each relevant one
notes how many of its distance came up to it, which is its place under the rule `index`. With class sets (`set_ap`) many
are relevant, and flags are counted along.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

from evaluate.metrics.ranking_kernels import AVERAGE, INDEX, group_precision

BLOCK = 2_048  # items whose distances stay in the first-level cache while words are added
LANES = 4  # histograms filled in turn, so that equal neighbours do not wait for each other's store
MOST_BITS = 32_767  # 2 d + flag is kept in 16 bits
LONG = 64  # groups above this size are summed in closed form


@intrinsic
def popcount(typing_context, word=None):
    """Number of set bits of a uint64, by the processor's instruction."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(cache=True)
def harmonic_span(ahead, n):
    """1/(ahead + 1) + ... + 1/(ahead + n): the difference of H(m) = ln m + 1/(2m) - 1/(12 m^2) for ahead >= 1000."""
    if ahead < 1000:
        total = 0.0
        for i in range(1, n + 1):
            total += 1.0 / (ahead + i)
        return total
    m, k = np.float64(ahead), np.float64(ahead + n)
    return np.log1p(n / m) + 0.5 * (1 / k - 1 / m) - (1 / (k * k) - 1 / (m * m)) / 12


@njit(cache=True)
def histogram_ap(counts, bins, relevant, ties):
    """AP from counts[2 d + flag] of items at distance d, for the tie rules average and group."""
    total, ahead, found = 0.0, np.int64(0), np.int64(0)
    for d in range(bins):
        r = counts[2 * d + 1]
        n = counts[2 * d] + r
        if r and ties == AVERAGE and n > LONG:
            span, slope = harmonic_span(ahead, n), (r - 1) / (n - 1)
            total += r / n * ((found + 1) * span + slope * (n - (ahead + 1) * span))
        elif r:
            total += group_precision(ahead, n, found, r, ties)
        ahead += n
        found += r
    return total / relevant


@njit(cache=True)
def index_ap(codes, counts, bins, skip, relevant):
    """AP with ties by index: walk the items in index order and hand out the places of their distance one by one."""
    place, found = np.empty(bins, np.int64), np.empty(bins, np.int64)
    ahead, hits = np.int64(0), np.int64(0)
    for d in range(bins):
        place[d], found[d] = ahead, hits
        ahead += counts[2 * d] + counts[2 * d + 1]
        hits += counts[2 * d + 1]
    total = 0.0
    for j in range(len(codes)):
        if j != skip:
            d = codes[j] >> 1
            place[d] += 1
            if codes[j] & 1:
                found[d] += 1
                total += found[d] / place[d]
    return total / relevant


@njit(cache=True)
def relevance_flags(query_set, database_sets, start, flags):
    """1 for items start.. whose class set meets the query's."""
    for j in range(len(flags)):
        flags[j] = 0
    for w in range(len(query_set)):
        for j in range(len(flags)):
            flags[j] |= (query_set[w] & database_sets[w, start + j]) != 0


@njit(cache=True)
def add_distances(word, column, distances):
    """Add the number of bits in which each of `column` differs from `word`."""
    for j in range(len(distances)):
        distances[j] += np.uint16(popcount(word ^ column[j]))


@njit(cache=True)
def distance_of(query, database, item):
    """Number of bits in which an item differs from the query."""
    total = np.int64(0)
    for w in range(len(query)):
        total += np.int64(popcount(query[w] ^ database[w, item]))
    return total


@njit(cache=True, parallel=True)
def class_ap(queries, database, ends, lengths, labels, order, offsets, skips, ties, out):
    """AP (P, Q) like `set_ap` for classes listed as order[offsets[c]:offsets[c + 1]], ascending."""
    n, prefixes = database.shape[1], len(ends)
    for i in prange(len(queries)):
        c = labels[i]
        members = order[offsets[c] : offsets[c + 1]] if c < len(offsets) - 1 else order[:0]
        lanes = np.zeros((prefixes, LANES, lengths[-1] + 1), np.int32)
        seen = np.empty((prefixes, len(members), 2), np.int64)
        distances = np.empty(BLOCK, np.uint16)
        first = last = 0
        for start in range(0, n, BLOCK):
            size = min(BLOCK, n - start)
            while last < len(members) and members[last] < start + size:
                last += 1
            for j in range(size):
                distances[j] = 0
            word = 0
            for p in range(prefixes):
                while word < ends[p]:
                    add_distances(queries[i, word], database[word, start : start + size], distances[:size])
                    word += 1
                count_past(distances[:size], members[first:last], start, lanes[p], seen[p, first:last])
            first = last
        for p in range(prefixes):
            away = distance_of(queries[i, : ends[p]], database, skips[i]) if skips[i] >= 0 else np.int64(-1)
            out[p, i] = members_ap(lanes[p], lengths[p] + 1, members, seen[p], skips[i], away, ties)


@njit(cache=True)
def count_past(distances, members, start, lanes, seen):
    """Count the distances of items start.., and note for each member its own and how many equal it up to there."""
    begin = 0
    for m in range(len(members)):
        end = members[m] - start + 1
        count_distances(distances[begin:end], lanes)
        d = distances[end - 1]
        seen[m, 0] = d
        seen[m, 1] = lanes[0, d] + lanes[1, d] + lanes[2, d] + lanes[3, d]
        begin = end
    count_distances(distances[begin:], lanes)


@njit(cache=True)
def count_distances(distances, lanes):
    """Count distances, one lane after the other."""
    whole = len(distances) - len(distances) % LANES
    for j in range(0, whole, LANES):
        lanes[0, distances[j]] += 1
        lanes[1, distances[j + 1]] += 1
        lanes[2, distances[j + 2]] += 1
        lanes[3, distances[j + 3]] += 1
    for j in range(whole, len(distances)):
        lanes[0, distances[j]] += 1


@njit(cache=True)
def members_ap(lanes, bins, members, seen, skip, away, ties):
    """AP of one query and prefix from the counts of all items and of its members, but `skip`, `away` bits off."""
    counts, relevant = np.zeros(2 * bins, np.int64), np.int64(0)
    for d in range(bins):
        counts[2 * d] = np.int64(lanes[0, d]) + lanes[1, d] + lanes[2, d] + lanes[3, d] - (d == away)
    for m in range(len(members)):
        if members[m] != skip:
            counts[2 * seen[m, 0]] -= 1
            counts[2 * seen[m, 0] + 1] += 1
            relevant += 1
    if relevant == 0:
        return np.nan
    if ties != INDEX:
        return histogram_ap(counts, bins, relevant, ties)
    ahead, found = np.zeros(bins + 1, np.int64), np.zeros(bins + 1, np.int64)
    for d in range(bins):
        ahead[d + 1] = ahead[d] + counts[2 * d] + counts[2 * d + 1]
        found[d + 1] = found[d] + counts[2 * d + 1]
    total = 0.0
    for m in range(len(members)):
        if members[m] != skip:
            d = seen[m, 0]
            found[d] += 1  # of the members at lower distance, and of those at this one up to here
            total += found[d] / (ahead[d] + seen[m, 1] - (d == away and skip < members[m]))
    return total / relevant


@njit(cache=True, parallel=True)
def set_ap(queries, database, ends, lengths, query_sets, database_sets, skips, ties, out):
    """AP (P, Q) for P nested prefixes: queries (Q, W), database (W, N); prefix p covers the first ends[p] words.

    Class sets are bit sets, (Q, V) and (V, N) uint64.
    """
    n, prefixes = database.shape[1], len(ends)
    width = 2 * (lengths[-1] + 1)
    for i in prange(len(queries)):
        lanes = np.zeros((prefixes, LANES, width), np.int32)
        codes = np.empty((prefixes, n if ties == INDEX else min(n, BLOCK)), np.uint16)
        distances, flags = np.empty(BLOCK, np.uint16), np.empty(BLOCK, np.uint8)
        for start in range(0, n, BLOCK):
            size = min(BLOCK, n - start)
            relevance_flags(query_sets[i], database_sets, start, flags[:size])
            for j in range(size):
                distances[j] = 0
            word, offset = 0, start if ties == INDEX else 0
            for p in range(prefixes):
                while word < ends[p]:
                    add_distances(queries[i, word], database[word, start : start + size], distances[:size])
                    word += 1
                fill_histogram(distances[:size], flags, codes[p, offset : offset + size], lanes[p])
        for p in range(prefixes):
            out[p, i] = prefix_ap(lanes[p], codes[p], n, lengths[p] + 1, skips[i], ties,
                                  queries[i, : ends[p]], database[: ends[p]], query_sets[i], database_sets)  # fmt: skip


@njit(cache=True)
def fill_histogram(distances, flags, codes, lanes):
    """Write codes 2 d + flag and count them, one lane after the other."""
    for j in range(len(codes)):
        codes[j] = distances[j] * np.uint16(2) + flags[j]
    whole = len(codes) - len(codes) % LANES
    for j in range(0, whole, LANES):
        lanes[0, codes[j]] += 1
        lanes[1, codes[j + 1]] += 1
        lanes[2, codes[j + 2]] += 1
        lanes[3, codes[j + 3]] += 1
    for j in range(whole, len(codes)):
        lanes[0, codes[j]] += 1


@njit(cache=True)
def prefix_ap(lanes, codes, n, bins, skip, ties, query, database, query_set, database_sets):
    """AP of one query and prefix from its histogram, without item `skip`."""
    counts = np.zeros(lanes.shape[1], np.int64)
    for lane in range(LANES):
        for v in range(len(counts)):
            counts[v] += lanes[lane, v]
    if skip >= 0:
        flag = np.empty(1, np.uint8)
        relevance_flags(query_set, database_sets, skip, flag)
        counts[2 * distance_of(query, database, skip) + flag[0]] -= 1
    relevant = np.int64(0)
    for d in range(bins):
        relevant += counts[2 * d + 1]
    if relevant == 0:
        return np.nan
    if ties == INDEX:
        return index_ap(codes[:n], counts, bins, skip, relevant)
    return histogram_ap(counts, bins, relevant, ties)

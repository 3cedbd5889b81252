# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The search of [`search`], compiled by numba. It is imported where numba is installed.

A shard is searched block by block. The first block tells what a document needs to be among the best, so that in the
others few words are added up; and the bits of frequent words tell fast which of the documents cannot reach it.
"""

import numba
import numpy as np

from . import search as searching


def _compiled(function):
    """Compile for threads that search apart: numba's own parallel loops must not be entered by two at once."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no folder that a cache could be written to
        return numba.njit(nogil=True)(function)


_BLOCK = 1 << 16  # documents whose sums stay in a core's own cache
_slack = _compiled(searching.slack)


@_compiled
def search_shard(queries, first, last, postings, best):
    """Take the documents of a shard into the best ones of the queries from `first` to `last`, exclusive."""
    size = min(_BLOCK, postings.num_documents)
    sums = np.zeros(size, dtype=np.float32)
    found = np.empty(size + 1, dtype=np.int32)  # `_add` writes one ahead
    partial = np.empty(size, dtype=np.float32)
    highest = np.empty(best.rows.shape[1], dtype=np.float32)
    for query in range(first, last):
        _search_one(queries, query, postings, best, sums, found, partial, highest)


@_compiled
def _search_one(queries, query, postings, best, sums, found, partial, highest):
    own = slice(queries.term_starts[query], queries.term_starts[query + 1])
    terms, repeats = queries.terms[own], queries.repeats[own].astype(np.float32)
    bounds = postings.bounds[terms] * repeats
    order = np.argsort(-bounds)
    rest = np.zeros(len(order) + 1)
    for position in range(len(order) - 1, -1, -1):
        rest[position] = rest[position + 1] + bounds[order[position]]
    error = _slack(queries.word_starts[query + 1] - queries.word_starts[query])
    k = best.rows.shape[1]
    begins, ends = postings.begins[terms], postings.begins[terms]
    hidden = queries.hidden_starts[query]
    for block in range(0, postings.num_documents, _BLOCK):
        needed = best.scores[query, 0] if best.sizes[query] == k else 0.0
        if rest[0] == 0 or rest[0] * (1 + error) < needed:
            return
        # The words' postings in this block
        until = block + _BLOCK
        for place in range(len(terms)):
            begins[place] = ends[place]
            ends[place] = _place(postings.documents, begins[place], postings.ends[terms[place]], until)
        hidden_before = hidden
        while hidden < queries.hidden_starts[query + 1] and queries.hidden[hidden] < postings.first_row + until:
            document = queries.hidden[hidden] - postings.first_row - block
            if document >= 0:
                sums[document] = -np.inf
            hidden += 1
        size = 0
        done = 0
        while done < len(order) and rest[done] > 0 and rest[done] * (1 + error) >= needed:
            place = order[done]
            size = _add(postings, begins[place], ends[place], repeats[place], block, sums, found, size)
            done += 1
            if done < len(order) and size >= k and best.sizes[query] < k:
                for other in range(size):
                    partial[other] = sums[found[other]]
                needed = max(needed, _kth(partial, size, highest) * (1 - error))
        size = _taken(sums, found, partial, size, needed / (1 + error) - rest[done])
        for other in range(hidden_before, hidden):
            document = queries.hidden[other] - postings.first_row - block
            if document >= 0:
                sums[document] = 0

        for position in range(done, len(order)):
            place = order[position]
            row = postings.bit_rows[terms[place]]
            least = needed / (1 + error) - rest[position + 1]
            if row >= 0:
                size = _kept_by_bits(postings.bits[row], np.float32(bounds[place]), block, found, partial, size, least)
            else:
                part = begins[place], ends[place]
                size = _kept_by_scores(postings, part, repeats[place], block, found, partial, size, least)
        for other in range(size):
            score = _score(queries, query, postings, begins, ends, found[other] + block)
            row = postings.first_row + block + found[other]
            best.sizes[query] = _push(best.rows[query], best.scores[query], best.sizes[query], row, score)


@_compiled
def _place(documents, low, high, document):
    """The first place from `low` to `high` whose document is not before the given one."""
    while low < high:
        middle = (low + high) >> 1
        if documents[middle] < document:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def _add(postings, begin, end, repeats, block, sums, found, size):
    """Add a word's scores to the sums; documents that are seen for the first time go to the end of `found`."""
    for posting in range(begin, end):
        document = postings.documents[posting] - block
        before = sums[document]
        found[size] = document
        size += before == 0
        sums[document] = before + postings.scores[posting] * repeats
    return size


@_compiled
def _taken(sums, found, partial, size, least):
    """Take the sums of the documents, clear them, and keep those of `least` and more."""
    kept = 0
    for place in range(size):
        document = found[place]
        value = sums[document]
        sums[document] = 0
        found[kept], partial[kept] = document, value
        kept += value >= least
    return kept


@_compiled
def _kept_by_bits(bits, bound, block, found, partial, size, least):
    """Add a word's bound to the sums of the documents that have it, and keep those of `least` and more."""
    kept = 0
    for place in range(size):
        document = found[place]
        at = document + block
        value = partial[place] + bound * ((bits[at >> 3] >> (at & 7)) & 1)
        found[kept], partial[kept] = document, value
        kept += value >= least
    return kept


@_compiled
def _kept_by_scores(postings, part, repeats, block, found, partial, size, least):
    """Add a word's scores to the sums of the documents, and keep those of `least` and more."""
    kept = 0
    for place in range(size):
        document = found[place]
        value = partial[place] + _looked_up(postings, part[0], part[1], document + block) * repeats
        found[kept], partial[kept] = document, value
        kept += value >= least
    return kept


@_compiled
def _looked_up(postings, begin, end, document):
    """The score of a word in a document, zero where it is not."""
    place = _place(postings.documents, begin, end, document)
    if place < end and postings.documents[place] == document:
        return postings.scores[place]
    return np.float32(0)


@_compiled
def _score(queries, query, postings, begins, ends, document):
    """The score of a document, summed in the order of the query's words."""
    by_term = np.empty(len(begins), dtype=np.float32)
    for place in range(len(begins)):
        by_term[place] = _looked_up(postings, begins[place], ends[place], document)
    score = np.float32(0)
    for place in range(queries.word_starts[query], queries.word_starts[query + 1]):
        score += by_term[queries.words[place] - queries.term_starts[query]]
    return score


@_compiled
def _kth(values, size, highest):
    """The k-th highest of `size >= k` values; `highest` is room for k of them, a heap with the least on top."""
    k = len(highest)
    count = 0
    for place in range(size):
        value = values[place]
        if count < k:
            child = count
            count += 1
            while child > 0 and value < highest[(child - 1) >> 1]:
                highest[child] = highest[(child - 1) >> 1]
                child = (child - 1) >> 1
            highest[child] = value
        elif value > highest[0]:
            parent = 0
            while True:
                child = 2 * parent + 1
                if child >= k:
                    break
                if child + 1 < k and highest[child + 1] < highest[child]:
                    child += 1
                if highest[child] >= value:
                    break
                highest[parent] = highest[child]
                parent = child
            highest[parent] = value
    return highest[0]


@_compiled
def _worse(row, score, other_row, other_score):
    return score < other_score or (score == other_score and row > other_row)


@_compiled
def _push(rows, scores, size, row, score):
    """Put a document on the heap of the best; returns the heap's new size."""
    if size < len(rows):
        place = size
        size += 1
        while place > 0:
            parent = (place - 1) >> 1
            if not _worse(row, score, rows[parent], scores[parent]):
                break
            rows[place], scores[place] = rows[parent], scores[parent]
            place = parent
    else:
        if _worse(row, score, rows[0], scores[0]):
            return size
        place = 0
        while 2 * place + 1 < size:
            child = 2 * place + 1
            other = child + 1
            if other < size and _worse(rows[other], scores[other], rows[child], scores[child]):
                child = other
            if not _worse(rows[child], scores[child], row, score):
                break
            rows[place], scores[place] = rows[child], scores[child]
            place = child
    rows[place], scores[place] = row, score
    return size

"""
BM25 over millions of captions: this package's index beside tantivy (a Lucene-class engine) and rank-bm25.

    python benchmarks/bench_bm25.py FOLDER [--documents 10000000] [--queries 1000] [--k 1 4 16] [--rounds 3]

Captions are made up, but their words follow the law of Zipf and Mandelbrot: the word of rank r has a frequency
proportional to (r + 2.7) ** -exponent. A caption has 5 to 20 words, a query 5 to 12, drawn alike. FOLDER takes the
captions and the indexes; indexes that are there are built again, unless `--keep` is given.

Each engine builds from the lines of one file in a process of its own, and searches in another, which then is asked in
turns with the others, round by round, on all cores. The time of a search is that from texts to rows (tantivy: to
addresses of documents). All use k1 = 1.2 and b = 0.75, which tantivy has built in; captions are too short for its
rounding of lengths to matter, so that its scores can be compared. rank-bm25 gets the first `--sample` captions, and
the idf of Lucene in place of its own for the comparison. Prints a table and JSON.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np


K1, B = 1.2, 0.75
SLOW_QUERIES = 10  # that rank-bm25 is asked
SPEEDS = ("queries_per_s", "queries_per_core_s")  # the second counts the seconds in which a core was at work
CORES = len(os.sched_getaffinity(0))


class Zipf:
    """Texts of words that follow the law of Zipf and Mandelbrot; the same ones for the same seed."""

    def __init__(self, num_words: int, exponent: float, shift: float = 2.7):
        weights = (np.arange(1, num_words + 1) + shift) ** -exponent
        self._cumulated = np.cumsum(weights) / weights.sum()
        self._words = np.array([self._word(rank) for rank in range(num_words)], dtype=object)

    @staticmethod
    def _word(rank: int) -> str:
        """A pronounceable word of its own for each rank; frequent words are short."""
        number, syllables = rank + 75, []
        while number:
            number, syllable = divmod(number, 75)
            syllables.append("bdfghjklmnprstv"[syllable // 5] + "aeiou"[syllable % 5])
        return "".join(syllables)

    def texts(self, count: int, shortest: int, longest: int, seed: int) -> Iterator[str]:
        """Texts of evenly distributed lengths."""
        draws = np.random.default_rng(seed)
        for start in range(0, count, 100_000):
            lengths = draws.integers(shortest, longest + 1, min(100_000, count - start))
            words = self._words[np.searchsorted(self._cumulated, draws.random(lengths.sum()))].tolist()
            end = 0
            for length in lengths.tolist():
                yield " ".join(words[end : end + length])
                end += length


class Ours:
    """The index of this package, with one of its backends."""

    def __init__(self, folder: Path, backend: str):
        from vimi_diffusers.retrieval import BM25Index

        start = time.perf_counter()
        self._index = BM25Index.load(folder, verify=False)
        self.opened_in = time.perf_counter() - start
        self._backend = backend

    @staticmethod
    def build(captions: Iterator[str], folder: Path) -> None:
        from vimi_diffusers.retrieval import BM25Index, tokenize

        BM25Index.create(folder, map(tokenize, captions), K1, B)

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        from vimi_diffusers.retrieval import tokenize

        return self._index.search([tokenize(text) for text in texts], k, backend=self._backend)

    rows = staticmethod(lambda found: found)


class Tantivy:
    """tantivy with an index of frequencies without positions; queries are spread over threads."""

    def __init__(self, folder: Path):
        import tantivy

        start = time.perf_counter()
        self._index = tantivy.Index.open(str(folder))
        self._searcher = self._index.searcher()
        self.opened_in = time.perf_counter() - start
        self._threads = ThreadPoolExecutor(CORES)

    @staticmethod
    def build(captions: Iterator[str], folder: Path) -> None:
        import tantivy

        schema = tantivy.SchemaBuilder()
        schema.add_text_field("text", index_option="freq")
        schema.add_unsigned_field("row", stored=True)
        folder.mkdir()
        index = tantivy.Index(schema.build(), path=str(folder))
        writer = index.writer(heap_size=1 << 30, num_threads=CORES)
        for row, caption in enumerate(captions):
            writer.add_document(tantivy.Document(text=caption, row=row))
        writer.commit()
        writer.wait_merging_threads()

    def _search(self, texts: list[str], k: int) -> list[list]:
        return [self._searcher.search(self._index.parse_query(text, ["text"]), k, count=False).hits for text in texts]

    def search(self, texts: list[str], k: int) -> list[list]:
        step = max(1, math.ceil(len(texts) / (4 * CORES)))
        parts = [texts[start : start + step] for start in range(0, len(texts), step)]
        return [hits for part in self._threads.map(self._search, parts, [k] * len(parts)) for hits in part]

    def rows(self, found: list[list]) -> tuple[np.ndarray, np.ndarray]:
        k = max(map(len, found))
        rows = np.full((len(found), k), -1)
        scores = np.zeros((len(found), k), dtype=np.float32)
        for query, hits in enumerate(found):
            for place, (score, address) in enumerate(hits):
                rows[query, place] = self._searcher.doc(address)["row"][0]
                scores[query, place] = score
        return rows, scores


class RankBM25:
    """rank-bm25, which holds all words of all texts as Python objects; it is built when it is opened."""

    def __init__(self, sample: Path):
        from rank_bm25 import BM25Okapi

        from vimi_diffusers.retrieval import tokenize

        start = time.perf_counter()
        with open(sample, encoding="utf-8") as lines:
            documents = [tokenize(line) for line in lines]
        self._index = BM25Okapi(documents, k1=K1, b=B)
        frequencies = dict.fromkeys(self._index.idf, 0)
        for counts in self._index.doc_freqs:
            for word in counts:
                frequencies[word] += 1
        for word, df in frequencies.items():
            self._index.idf[word] = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        self.opened_in = time.perf_counter() - start
        self._tokenize = tokenize

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.array([self._index.get_scores(self._tokenize(text)) for text in texts])
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, rows, axis=1)
        return np.where(scores > 0, rows, -1), scores

    rows = staticmethod(lambda found: found)


def memory(name: str) -> float:
    """A figure of this process's memory in GB, as Linux gives it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e9


def build_alone(build: Callable, captions: Path, folder: Path, sender: Connection) -> None:
    """Build an index in this process and send the seconds, those in which a core was at work, and peak memory."""
    with open(captions, encoding="utf-8") as lines:
        start = time.perf_counter()
        build((line.rstrip("\n") for line in lines), folder)
        sender.send((time.perf_counter() - start, time.process_time(), memory("VmHWM")))


def search_alone(engine: type, arguments: tuple, queries: list[str], connection: Connection) -> None:
    """Open an index in this process and answer for numbers of queries and k until there is no question."""
    opened = engine(*arguments)
    opened.search(queries[:2], 1)  # compiles, opens
    connection.send({"open_s": opened.opened_in})
    while (question := connection.recv()) is not None:
        number, k, wants_rows = question
        start, start_of_cpu = time.perf_counter(), time.process_time()
        found = opened.search(queries[:number], k)
        seconds, of_cpu = time.perf_counter() - start, time.process_time() - start_of_cpu
        answer = {"queries_per_s": number / seconds, "queries_per_core_s": number / of_cpu}
        answer |= {name: memory(name) for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}
        connection.send((answer, opened.rows(found) if wants_rows else None))


def start(target: Callable, *arguments) -> tuple[multiprocessing.Process, Connection]:
    """A fresh process, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    return process, here


def write_captions(zipf: Zipf, args: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """All captions and the sample of rank-bm25, one in each line."""
    name = f"{args.documents}-{args.words}-{args.exponent}"
    captions, sample = folder / f"captions-{name}.txt", folder / f"sample-{name}-{args.sample}.txt"
    if not captions.exists():
        part = captions.with_suffix(".part")
        with open(part, "w", encoding="utf-8") as lines:
            lines.writelines(text + "\n" for text in zipf.texts(args.documents, 5, 20, seed=1))
        part.rename(captions)
    with open(captions, encoding="utf-8") as lines, open(sample, "w", encoding="utf-8") as out:
        out.writelines(islice(lines, args.sample))
    return captions, sample


def build_all(args: argparse.Namespace, captions: Path, sample: Path) -> dict[str, dict]:
    """Build each index that lies on disk; `"sample"` is this package's index of what rank-bm25 gets."""
    report = {}
    for name, build, source in (
        ("vimi", Ours.build, captions), ("tantivy", Tantivy.build, captions), ("sample", Ours.build, sample)
    ):  # fmt: skip
        folder = args.folder / name
        if folder.exists() and args.keep:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        process, connection = start(build_alone, build, source, folder)
        seconds, of_cores, peak = connection.recv()
        process.join()
        size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e9
        count = min(args.sample, args.documents) if name == "sample" else args.documents
        speeds = {"documents_per_s": count / seconds, "documents_per_core_s": count / of_cores}
        report[name] = speeds | {"build_peak_gb": peak, "disk_gb": size}
        print(f"built {name}: {json.dumps(report[name])}", flush=True)
    return report


def of_queries(found: tuple[np.ndarray, np.ndarray], chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The results of some queries."""
    return tuple(one[chosen] for one in found)


def agreement(found: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """How far two rankings agree: rows in the same place, and where they differ, whether the scores are the same."""
    (rows, scores), (other_rows, other_scores) = found, other
    width = min(rows.shape[1], other_rows.shape[1])
    rows, scores, other_rows, other_scores = (one[:, :width] for one in (rows, scores, other_rows, other_scores))
    same = rows == other_rows
    ties = np.isclose(scores, other_scores, rtol=1e-5, atol=1e-6)
    return {
        "same_row": float(same.mean()),
        "same_row_or_equal_score": float((same | ties).mean()),
        "largest_relative_difference_of_scores": float(
            (np.abs(scores - other_scores) / np.maximum(other_scores, 1e-9)).max()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--words", type=int, default=1_500_000, help="size of the vocabulary")
    parser.add_argument("--exponent", type=float, default=1.1)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=100_000, help="captions that rank-bm25 gets")
    parser.add_argument("--keep", action="store_true", help="search the indexes that are there")
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    zipf = Zipf(args.words, args.exponent)
    queries = list(zipf.texts(args.queries, 5, 12, seed=2))
    captions, sample = write_captions(zipf, args, args.folder)
    del zipf
    report = {"arguments": {name: str(value) for name, value in vars(args).items()}, "cores": CORES}
    report["build"] = build_all(args, captions, sample)

    engines = {
        "numba": (Ours, (args.folder / "vimi", "numba"), len(queries)),
        "numpy": (Ours, (args.folder / "vimi", "numpy"), len(queries)),
        "tantivy": (Tantivy, (args.folder / "tantivy",), len(queries)),
        "rank-bm25 (sample)": (RankBM25, (sample,), SLOW_QUERIES),
        "numba (sample)": (Ours, (args.folder / "sample", "numba"), len(queries)),
    }
    running = {}
    for name, (engine, arguments, number) in engines.items():
        process, connection = start(search_alone, engine, arguments, queries)
        speeds = {f"{speed}@{k}": [] for k in args.k for speed in SPEEDS}
        report[name] = connection.recv() | speeds
        running[name] = (connection, number)
    found = {}
    for round_number in range(args.rounds):
        for k in args.k:
            for name, (connection, number) in running.items():
                last = round_number == args.rounds - 1 and k == max(args.k)
                connection.send((number, k, last))
                answer, found[name] = connection.recv()
                for speed in SPEEDS:
                    report[name][f"{speed}@{k}"].append(round(answer.pop(speed), 1))
                report[name] |= answer
                print(f"round {round_number} k={k} {name}: {report[name][f'queries_per_s@{k}'][-1]} q/s", flush=True)
    for connection, _ in running.values():
        connection.send(None)

    # tantivy's parser drops repeated words of a query
    plain = [number for number, text in enumerate(queries) if len(set(text.split())) == len(text.split())]
    report["agreement"] = {
        "numba, numpy": agreement(found["numba"], found["numpy"]),
        "numba, tantivy": agreement(*(of_queries(found[name], plain) for name in ("numba", "tantivy"))),
        "numba, rank-bm25 (sample)": agreement(
            of_queries(found["numba (sample)"], list(range(SLOW_QUERIES))), found["rank-bm25 (sample)"]
        ),
    }
    columns = [f"{speed}@{k}" for speed in SPEEDS for k in args.k]
    titles = [f"q/{unit} k={k}" for unit in ("s", "core-s") for k in args.k]
    print(f"\n{'engine':20}" + "".join(f"{one:>15}" for one in (*titles, "VmRSS GB", "VmHWM GB")))
    for name in engines:
        speeds = "".join(f"{statistics.median(report[name][column]):15.1f}" for column in columns)
        print(f"{name:20}{speeds}{report[name]['VmRSS']:15.2f}{report[name]['VmHWM']:15.2f}")
    print("\n" + json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

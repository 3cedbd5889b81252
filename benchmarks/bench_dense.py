"""
How much of the exact nearest neighbours the approximate indexes of dense retrieval find, how fast, in how much space.

    python benchmarks/bench_dense.py [WORLD] [--rows N] [--threads N]

Two sets of vectors of length 1: synthetic ones (1,000 clusters in 64 of 384 dimensions), and, with WORLD (a folder
that `vimi emoji-world build` wrote), MiniLM's of the world's captions, of which 500 are the queries. "@k" is the share
of the exact k nearest that are among the k found.
"""

import argparse
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from vimi_diffusers.retrieval import vectors


NUM_QUERIES = 500
SETTINGS = (
    ("flat", {}),
    ("hnsw", {"ef_search": 32}),
    ("hnsw", {"ef_search": 128}),
    ("ivfpq", {"nprobe": 8}),
    ("ivfpq", {"nprobe": 32}),
    ("ivfpq", {"nprobe": 128}),
    ("half the codes", {"nprobe": 32}),
)


def synthetic(rows: int) -> np.ndarray:
    draws = np.random.default_rng(0)
    latent = 2 * draws.standard_normal((1000, 64))[draws.integers(1000, size=rows)] + draws.standard_normal((rows, 64))
    found = (latent @ draws.standard_normal((64, 384)) / 8 + 0.1 * draws.standard_normal((rows, 384))).astype(
        "float32"
    )
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def captions(world: Path) -> np.ndarray:
    from vimi_diffusers.emoji_world.world_index import WorldIndex
    from vimi_diffusers.evaluation.retrieval import WORDINGS, draw_captions
    from vimi_diffusers.retrieval.encoder import Encoder

    index = WorldIndex.load(world)
    clips, places = [one for one in index.concepts.values() if one.clip], list(index.places.values())
    texts = sorted({text for wording in WORDINGS for _, _, text in draw_captions(clips, places, wording)})
    texts = [texts[number] for number in np.random.default_rng(0).permutation(len(texts))]
    return Encoder("minilm").encode_documents(texts)


def measure(name: str, rows: np.ndarray) -> None:
    queries, rows = rows[:NUM_QUERIES], rows[NUM_QUERIES:]
    print(f"\n{name}: {len(rows)} vectors of {rows.shape[1]}, {len(queries)} queries")
    print(f"{'index':<22}{'searched with':<18}{'build s':>9}{'MB':>8}{'@1':>7}{'@10':>7}{'@100':>7}{'queries/s':>11}")
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :100]
    built = {}
    for kind, settings in SETTINGS:
        factory = vectors.factory_string("ivfpq" if kind == "half the codes" else kind, len(rows), len(rows), 384)
        factory = factory.replace("PQ96", "PQ48") if kind == "half the codes" else factory
        if factory not in built:
            start = time.perf_counter()
            empty = vectors.make_index(factory, rows.shape[1])
            if not empty.is_trained:
                vectors.train(empty, factory, rows)
            (shard,) = vectors.fill_shards(empty, [(np.ones(len(rows), dtype=bool), rows)], len(rows))
            with tempfile.TemporaryDirectory() as folder:
                vectors.write_index(shard.index, Path(folder) / "index")
                size = (Path(folder) / "index").stat().st_size / 1e6
            built[factory] = empty, shard, time.perf_counter() - start, size
        empty, shard, seconds, size = built[factory]
        effort = {"nprobe": vectors.NPROBE, "ef_search": vectors.EF_SEARCH, **settings}
        start = time.perf_counter()
        ((found, _),) = vectors.search_shards(empty, [shard], queries, 100, **effort)
        speed = len(queries) / (time.perf_counter() - start)
        recalls = [
            np.mean([len({*a[:k]} & {*b[:k]}) / k for a, b in zip(exact.tolist(), found.tolist())])
            for k in (1, 10, 100)
        ]
        searched = ", ".join(f"{name} {value}" for name, value in settings.items())
        figures = "".join(f"{value:>7.3f}" for value in recalls)
        print(f"{factory:<22}{searched:<18}{seconds:>9.1f}{size:>8.1f}{figures}{speed:>11.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=100_000, help="synthetic vectors")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    faiss.omp_set_num_threads(args.threads)
    if args.world is not None:
        measure("captions of emoji world", captions(args.world))
    measure("synthetic", synthetic(args.rows + NUM_QUERIES))


if __name__ == "__main__":
    main()

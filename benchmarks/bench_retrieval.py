"""
How fast the memory of a built emoji world is made, opened and searched, and how large it is. What it finds is measured
by `vimi evaluate retrieval`.

    python benchmarks/bench_retrieval.py WORLD

WORLD is a folder that `vimi emoji-world build` wrote.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vimi_diffusers.emoji_world.world_index import WorldIndex
from vimi_diffusers.evaluation.retrieval import draw_captions
from vimi_diffusers.retrieval import ImageTextMemory


def time_searches(folder: Path, prompts: list[str]) -> None:
    start = time.perf_counter()
    memory = ImageTextMemory.load(folder)
    loaded = time.perf_counter()
    memory.search(prompts[0])
    first = time.perf_counter()
    ImageTextMemory.load(folder, verify=False)
    unverified = time.perf_counter()
    memory.search_batch(prompts)
    end = time.perf_counter()
    print(f"load {1e3 * (loaded - start):.1f} ms ({1e3 * (unverified - first):.1f} ms without hashing)")
    print(f"first search {1e3 * (first - loaded):.1f} ms, {1e3 * (end - unverified) / len(prompts):.2f} ms a search")
    code = (
        "import sys, resource; from vimi_diffusers.retrieval import ImageTextMemory;"
        "ImageTextMemory.load(sys.argv[1]).search(sys.argv[2])[0].image.load();"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, folder, prompts[0]], check=True, capture_output=True, text=True)
    print(
        f"a fresh process with imports {time.perf_counter() - start:.2f} s, {int(done.stdout) / 1024:.0f} MiB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    args = parser.parse_args()

    index = WorldIndex.load(args.world)
    start = time.perf_counter()
    memory = ImageTextMemory.from_folder(args.world / "memory")
    print(f"{memory}: read, checked and indexed in {time.perf_counter() - start:.2f} s")
    clips = [concept for concept in index.concepts.values() if concept.clip]
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "memory"
        memory.save(saved)
        size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
        pairs = sum(file.stat().st_size for file in (saved / "data").iterdir())
        print(f"saved {size / 1e6:.2f} MB, {pairs / 1e6:.2f} MB of it the pairs")
        captions = draw_captions(clips, list(index.places.values()), "canonical")
        time_searches(saved, [caption for _, _, caption in captions])
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most in this process")


if __name__ == "__main__":
    main()

"""
How well and how fast the memory of a built emoji world is searched.

    python benchmarks/bench_retrieval.py WORLD [--misses N]

WORLD is a folder that `vimi emoji-world build` wrote. Every concept with an animated clip is asked for in five
captions, two of three with a camera motion, and that in three wordings: the canonical one, paraphrases as in
training, and those without a place. The pairs that show the clip's own drawing (fluent3d, flat) are excluded, as in
training. "concept@1" is the share of captions whose best subject is the concept, "concept@4" the share with it among
the best four, "place@1" the share whose place is the one named, or none if none is named. "free wording" are prompts
as people write them; there a concept of the same group is right.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from vimi_diffusers.emoji_world.captions import MOVES, canonical_plan, paraphrased_plan
from vimi_diffusers.emoji_world.recipes import Draws
from vimi_diffusers.emoji_world.world_index import Concept, Place, WorldIndex
from vimi_diffusers.retrieval import ImageTextMemory


CAPTIONS_PER_CONCEPT = 5
SAME_DRAWING = ("fluent3d", "flat")
# Prompts as people write them; any concept of the named groups counts as right. "-" : the prompt names no place.
FREE_PROMPTS = """
dog     park      A puppy runs across a grassy park
dog     sky       My dog is swimming in the sea
dog     -         A cute little dog jumps up and down
tiger   forest    A big striped cat prowls through the pine forest
tiger   night     A tiger hunting at night on the savanna
rabbit  sunrise   A bunny hopping through a misty meadow
rabbit  -         A white rabbit is dancing
sheep   park      A lamb grazes in the park
sheep   sunrise   A goat climbing in a meadow at sunrise
camel   dawn      A camel walking through the desert
camel   dawn      A dromedary crosses a rocky desert at dawn
camel   -         A llama looking at the camera
1f99b   night     A hippo walks over the savanna
1f9a8   forest    A skunk sneaks through the woods
fish    sky       A shark circling in the sea
fish    sky       A dolphin jumps out of the sea
fish    lab       A clownfish in an old laboratory
beetle  park      A ladybug flies over the grass of a park
beetle  warehouse A cockroach crawls through an empty warehouse
beetle  forest    An insect crawling in the forest
ship    sky       A boat sailing on the calm sea
ship    sky       A cruise ship passes from left to right over the sea
ship    venice    A canoe glides along the quay at dusk
plane   sky       An aeroplane flies over the sea
plane   sunset    A plane taking off, old stone square at sunset
1fa82   forest    A parachute comes down over a pine forest
umbrella city     An umbrella flying over a city square
umbrella -        An open umbrella in the rain
26a1    night     A lightning strike over the savanna at night
1f52c   lab       A female scientist works in an old laboratory
1f9d9   sunset    A wizard casting a spell on an old stone square
1f9d9   -         A sorcerer waves his wand
26f7    -         Someone skiing down the slope
mother  apartment A mother feeding her baby in a sunlit room
1f9d7   -         A woman climbing up a wall
2695    lobby     A doctor walks through the bright lobby
fox     park      A fox runs through the park
fox     forest    A wolf howling in the pine forest
1f422   park      A sea turtle glides through a park
1f422   studio    A tortoise in a photo studio
elephant esplanade An elephant walks through a shopping mall
bear    forest    A grizzly bear in a forest
cat     apartment A kitten plays in an empty room
horse   sunrise   A pony galloping across a meadow
1f427   warehouse A penguin waddles through a warehouse
squid   sky       A jellyfish drifting in the sea
car     city      A red car drives across a grey city square
train   workshop  A locomotive in a factory workshop
cycle   park      A bike rolls through the park
1f680   dawn      A spaceship takes off in the desert
""".strip().splitlines()


class Tally:
    """Counts hits of one set of captions."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("concept@1", "concept@4", "place@1"), 0)
        self.total = 0
        self.misses: list[str] = []

    def add(self, prompt: str, subjects: list[bool], place: bool) -> None:
        """Take in whether each found subject is right, best first, and whether the place is."""
        self.total += 1
        for name, hit in (("concept@1", any(subjects[:1])), ("concept@4", any(subjects)), ("place@1", place)):
            self.counts[name] += hit
        if not any(subjects[:1]) or not place:
            self.misses.append(prompt)

    def __str__(self) -> str:
        shares = [f"{name} {100 * count / self.total:5.1f}" for name, count in self.counts.items()]
        return "  ".join(shares) + f"  ({self.total} prompts)"


def captions(
    concepts: Iterable[Concept], places: list[Place], wording: str
) -> Iterable[tuple[Concept, Place | None, str]]:
    """Five captions for each concept, always the same ones."""
    for concept in concepts:
        for number in range(CAPTIONS_PER_CONCEPT):
            draws = Draws(f"bench-retrieval:{wording}:{concept.concept}:{number}")
            place, move, cam = draws.choice(places), draws.choice(MOVES), draws.choice((-1, 0, 1))
            if wording == "canonical":
                plan = canonical_plan(draws, move, cam, place.phrase)
            else:
                named = wording == "paraphrased"
                plan = paraphrased_plan(draws, move, cam, place.place, place.phrase, name_place=named)
            yield concept, place if plan.place else None, plan.text(concept.phrase, concept.plural)


def score_captions(memory: ImageTextMemory, index: WorldIndex, concepts: list[Concept], wording: str) -> Tally:
    tally = Tally()
    for concept, place, caption in captions(concepts, list(index.places.values()), wording):
        exclude = [id for style in SAME_DRAWING if (id := f"{style}/{concept.concept}") in memory]
        pairs = memory.search(caption, k={"subject": 4, "place": 1}, exclude=exclude)
        subjects = [pair.metadata["concept"] == concept.concept for pair in pairs if pair.kind == "subject"]
        found = [pair.metadata["concept"] for pair in pairs if pair.kind == "place"]
        tally.add(f"{caption} -> {[pair.text for pair in pairs]}", subjects, found == ([place.place] if place else []))
    return tally


def score_free_prompts(memory: ImageTextMemory, index: WorldIndex) -> Tally:
    tally = Tally()
    for line in FREE_PROMPTS:
        key, place, prompt = line.split(maxsplit=2)
        pairs = memory.search(prompt, k={"subject": 4, "place": 1})
        subjects = [index.concepts[pair.metadata["concept"]].key == key for pair in pairs if pair.kind == "subject"]
        found = [pair.metadata["concept"] for pair in pairs if pair.kind == "place"]
        tally.add(f"{prompt} -> {[pair.text for pair in pairs]}", subjects, found == ([] if place == "-" else [place]))
    return tally


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
    parser.add_argument("--misses", type=int, default=0, help="print this many misses of each set")
    args = parser.parse_args()

    index = WorldIndex.load(args.world)
    start = time.perf_counter()
    memory = ImageTextMemory.from_folder(args.world / "memory")
    print(f"{memory}: read, checked and indexed in {time.perf_counter() - start:.2f} s")
    clips = [concept for concept in index.concepts.values() if concept.clip]
    held_out = [concept for concept in clips if concept.split == "held_out"]
    sets = [
        (f"{name}, {wording}", score_captions(memory, index, concepts, wording))
        for wording in ("canonical", "paraphrased", "placeless")
        for name, concepts in ((f"{len(held_out)} held-out concepts", held_out), (f"{len(clips)} concepts", clips))
    ]
    sets.append(("free wording", score_free_prompts(memory, index)))
    for name, tally in sets:
        print(f"{name:<38} {tally}")
        for miss in tally.misses[: args.misses]:
            print("    ", miss)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "memory"
        memory.save(saved)
        size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
        pairs = sum(file.stat().st_size for file in (saved / "data").iterdir())
        print(f"saved {size / 1e6:.2f} MB, {pairs / 1e6:.2f} MB of it the pairs")
        time_searches(saved, [caption for _, _, caption in captions(clips, list(index.places.values()), "canonical")])
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most in this process")


if __name__ == "__main__":
    main()

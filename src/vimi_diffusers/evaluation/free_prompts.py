# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Prompts for emoji world as people write them, most of them in other words than the concepts' labels have."""

from typing import NamedTuple


class FreePrompt(NamedTuple):
    """
    A prompt and what it asks for.

    Args:
        key (`str`): Family of concepts (`Concept.key`); each of them is right.
        place (`str` or `None`): The place that it names.
        text (`str`): The prompt.
    """

    key: str
    place: str | None
    text: str


# Family, place ("-": none is named), prompt. The first 50 were there when the memory's recipe was chosen; the others
# were written before any search had seen them.
_PROMPTS = """
dog           park      A puppy runs across a grassy park
dog           sky       My dog is swimming in the sea
dog           -         A cute little dog jumps up and down
tiger         forest    A big striped cat prowls through the pine forest
tiger         night     A tiger hunting at night on the savanna
rabbit        sunrise   A bunny hopping through a misty meadow
rabbit        -         A white rabbit is dancing
sheep         park      A lamb grazes in the park
sheep         sunrise   A goat climbing in a meadow at sunrise
camel         dawn      A camel walking through the desert
camel         dawn      A dromedary crosses a rocky desert at dawn
camel         -         A llama looking at the camera
1f99b         night     A hippo walks over the savanna
1f9a8         forest    A skunk sneaks through the woods
fish          sky       A shark circling in the sea
fish          sky       A dolphin jumps out of the sea
fish          lab       A clownfish in an old laboratory
beetle        park      A ladybug flies over the grass of a park
beetle        warehouse A cockroach crawls through an empty warehouse
beetle        forest    An insect crawling in the forest
ship          sky       A boat sailing on the calm sea
ship          sky       A cruise ship passes from left to right over the sea
ship          venice    A canoe glides along the quay at dusk
plane         sky       An aeroplane flies over the sea
plane         sunset    A plane taking off, old stone square at sunset
1fa82         forest    A parachute comes down over a pine forest
umbrella      city      An umbrella flying over a city square
umbrella      -         An open umbrella in the rain
26a1          night     A lightning strike over the savanna at night
1f52c         lab       A female scientist works in an old laboratory
1f9d9         sunset    A wizard casting a spell on an old stone square
1f9d9         -         A sorcerer waves his wand
26f7          -         Someone skiing down the slope
mother        apartment A mother feeding her baby in a sunlit room
1f9d7         -         A woman climbing up a wall
2695          lobby     A doctor walks through the bright lobby
fox           park      A fox runs through the park
fox           forest    A wolf howling in the pine forest
1f422         park      A sea turtle glides through a park
1f422         studio    A tortoise in a photo studio
elephant      esplanade An elephant walks through a shopping mall
bear          forest    A grizzly bear in a forest
cat           apartment A kitten plays in an empty room
horse         sunrise   A pony galloping across a meadow
1f427         warehouse A penguin waddles through a warehouse
squid         sky       A jellyfish drifting in the sea
car           city      A red car drives across a grey city square
train         workshop  A locomotive in a factory workshop
cycle         park      A bike rolls through the park
1f680         dawn      A spaceship takes off in the desert
2695          lab       A nurse hurries through an old laboratory
2695          -         A surgeon walks to the next patient
1f52c         -         A chemist at work
1f4bb         lobby     A programmer types code in a bright lobby
1f4bb         -         A software developer at her desk
1f935         hall      A groom dances in a ballroom
1f935         -         A gentleman in a black suit and bow tie
mother        -         A lady who expects a baby
mother        park      A mum nurses her newborn in a park
1f9d9         forest    A magician conjures sparks in a pine forest
1f9d9         -         An old warlock with a long beard
1f486         -         Someone relaxes at the spa while her temples are rubbed
1f486         -         A guy gets his head rubbed by a masseur
1f9d6         -         A guy sweats in the sauna
1f9d6         -         Two friends in a steam bath
1f9d7         dawn      A mountaineer scales a cliff in a rocky desert
1f9d7         -         A bouldering athlete hangs from a rock wall
1f93d         -         Athletes throw a ball in the swimming pool
1f6cc         apartment Someone sleeps under a blanket in an empty sunlit room
1f6cc         -         A tired guest lies down for a nap
frown         -         An unhappy lady with a sulky look
dog           park      A hound chases a stick on the grass of a park
dog           warehouse A mutt sniffs around an empty warehouse
dog           -         A curly-haired pet dog with a ribbon
tiger         night     A spotted big cat stalks over the savanna
tiger         -         A predator with orange and black stripes
sheep         sunrise   A billy goat nibbles leaves in a misty meadow at sunrise
sheep         -         A woolly farm animal bleats
camel         dawn      An alpaca trots over the rocky desert
camel         -         A desert animal with two humps
1f99b         -         A huge river animal opens its wide mouth
rabbit        forest    A hare darts between the pines of the forest
rabbit        -         A fluffy bunny nibbles a leaf
1f9a8         park      A smelly black and white animal strolls over the lawn of the park
fish          sky       A great white swims below a calm sea
fish          -         A puffer inflates itself
fish          -         A friendly porpoise leaps
beetle        park      A tiny red insect with black dots climbs a blade in the park
beetle        workshop  A pest scuttles across the floor of a factory workshop
beetle        -         A worker of the colony carries a crumb
beetle        -         A grasshopper chirps
place-map     -         A needle that points north
ship          sky       A yacht races over a calm sea
ship          venice    A kayak drifts past the quay at dusk
ship          -         A cargo vessel leaves the harbour
plane         sky       A jet climbs above the sea
plane         city      An airliner descends over a grey city square
plane         -         A Cessna circles the airfield
1fa82         dawn      A skydiver floats down into the rocky desert
umbrella      bridge    A parasol is blown over a glass footbridge
umbrella      -         Something to keep you dry when it pours
26a1          sky       A thunderbolt hits the calm sea
26a1          -         A flash of electricity
music         -         A melody fills the air
person-symbol -         Two friends embrace each other
person-symbol -         Tracks of bare feet in the sand
cat           apartment A kitty chases its tail in a sunlit room
cat           -         A tomcat licks its paw
horse         dawn      A stallion gallops through the desert
fox           -         A sly animal with a bushy red tail
bear          -         A cub looks for honey
chicken       -         A hen pecks at corn
pig           park      A piglet rolls in the mud of the park
mouse         warehouse A rodent scurries through the empty warehouse
1f692         -         A fireman rushes to the rescue
1f46e         city      A cop patrols the grey city square
1f373         -         A chef stirs the soup
1f33e         -         A peasant harvests the crops
1f9db         -         Count Dracula spreads his cape
1f9df         -         An undead corpse staggers
train         city      A tram rattles along the grey city square
bus           -         A coach full of tourists
waterfowl     -         A duckling paddles
"""

FREE_PROMPTS = tuple(
    FreePrompt(key, None if place == "-" else place, text)
    for key, place, text in (line.split(maxsplit=2) for line in _PROMPTS.strip().splitlines())
)

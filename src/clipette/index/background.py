"""Texts about almost anything: what people might ask that a given collection most likely cannot answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# Written for this purpose; one or two words each, from fields that few collections share. What a collection's own
# captions name is left out before use.
TOPICS: tuple[str, ...] = tuple(
    """
    aardvark, abacus, accordion, acupuncture, aircraft carrier, airport runway, algae, alpaca, altar, anchor, anteater,
    antelope, anvil, apricot, aquarium, archery target, armadillo, artichoke, asparagus, asteroid, astronaut, avocado,
    axolotl, baboon, backgammon, bagpipes, ballet dancer, bamboo forest, banjo, bank note, bar chart, barcode, barn owl,
    barometer, bassoon, bat colony, beaver dam, beehive, billiard table, bison, blacksmith, blast furnace, blood test,
    blueberry muffin, bonsai, bookshelf, bowling alley, brain scan, brewery, broccoli, bulldozer, butcher shop, cactus,
    caduceus, calculator, calligraphy, camel caravan, candlestick, cannon, carburettor, cash register, catacomb,
    cathedral, cello, cement mixer, centipede, chalkboard, chameleon, chandelier, cheese wheel, chemistry lab,
    chess board, chimpanzee, chopsticks, circuit board, clarinet, clock tower, coal mine, cobra, coconut palm,
    coffee plantation, comet, compass, construction crane, coral reef, corkscrew, cotton field, courtroom, crab,
    credit card, crocodile, crossword puzzle, crown jewels, cruise ship, crystal, cuckoo clock, cuneiform tablet,
    cuttlefish, cypress, dam wall, dartboard, data centre, dentist, desert dune, dinosaur skeleton, dishwasher,
    DNA helix, dragonfly, drawbridge, drone, drum kit, dumpling, eclipse, eel, electric guitar, electricity meter,
    electron microscope, embroidery, engine block, escalator, espresso machine, excavator, factory chimney, falcon,
    fax machine, fencing match, ferris wheel, fingerprint, fire hydrant, fireplace, flamingo, floor plan, flute,
    forklift, fossil, fountain pen, galaxy, garlic, gas mask, gearbox, geyser, gingerbread house, giraffe, glacier,
    goldfish, gorilla, grand piano, grapefruit, gravestone, greenhouse, grenade, hammock, handcuffs, harbour crane,
    harpsichord, hedgehog, helicopter, hieroglyph, hippopotamus, honeycomb, hospital ward, hourglass, hummingbird,
    iceberg, igloo, iguana, ink bottle, insulin pump, iron bridge, jaguar, jellyfish, jigsaw puzzle, judge, kangaroo,
    kayak rack, keyboard, kiwi fruit, knitting needle, koala, ladybird, lantern, laptop screen, lathe, laundromat,
    lava flow, lemur, library card, lighthouse, line graph, lizard, loaf of bread, lobster, locomotive, loom, lynx,
    magnet, mandolin, mango, manta ray, map legend, marble statue, mask, meerkat, menorah, metro station, microchip,
    microphone, microscope slide, milkshake, minaret, minefield, mosaic, mosque, motherboard, mummy, mushroom, nautilus,
    needle, neon sign, nuclear reactor, nutcracker, oak desk, oboe, octopus, oil rig, okapi, olive grove, omelette,
    opera stage, orchid, origami crane, oscilloscope, ostrich, otter, oyster, padlock, pagoda, paintbrush, pancake,
    panda, paper clip, parking meter, parliament, passport, peacock, pearl necklace, pelican, pencil sharpener, penguin,
    periodic table, petri dish, pharmacy, pie chart, pineapple, pipe organ, pistachio, planetarium, platypus, pocket
    watch, polar bear, pomegranate, porcupine, postage stamp, power plant, prairie dog, printing press, prism,
    propeller, pufferfish, pumpkin, puppet theatre, pyramid, quilt, quiver of arrows, raccoon, radar dish, radio
    telescope, raspberry, rattlesnake, receipt, recording studio, reindeer, rhinoceros, rice terrace, robot arm, rocket
    launch, rolling pin, rosary, roulette wheel, router, rubber duck, safe, saffron, salamander, sand castle, satellite,
    sauna, saxophone, scaffold, scarecrow, scorpion, screenshot, screwdriver, seahorse, seismograph, server rack, sewing
    machine, sextant, shark fin, sheet music, shipyard, shooting star, shopping receipt, skeleton key, skyscraper,
    sledgehammer, sloth, snail, snow globe, soap bubble, solar panel, soldering iron, space shuttle, spaghetti,
    spectrogram, sphinx, spice market, spider web, spinning wheel, squid, squirrel, stained glass, stapler, starfish,
    steam engine, stethoscope, stingray, stock chart, submarine, suitcase, sundial, surgeon, sushi, swan, sword,
    syringe, tapestry, tarantula, taxidermy, teapot, telegraph, telephone booth, telescope, temple ruin, termite mound,
    test tube, thermometer, thimble, throne, toaster, tombstone, toothbrush, tornado, totem pole, toucan, tractor,
    traffic cone, treadmill, trilobite, trombone, truffle, tuba, turbine blade, turtle, typewriter, ultrasound scan,
    unicycle, urn, vaccine vial, vending machine, ventilation shaft, vineyard, viola, violin, volcano, voting booth,
    vulture, waffle, walnut, walrus, warthog, washing machine, water mill, waterfall, wax seal, weather map, welding
    torch, wheelbarrow, wind tunnel, wind turbine, wine cellar, wolf, woodpecker, wrench, x-ray, xylophone, yacht, yak,
    zebra, zeppelin, zipper
    """.replace("\n", " ").split(",")
)
TOPICS = tuple(" ".join(topic.split()) for topic in TOPICS)

# Words of captions that no picture shows by themselves.
FUNCTION = frozenset(
    word.strip()
    for word in """
    about, above, across, after, against, along, also, among, and, another, are, around, away, back, background,
    because, been, before, behind, being, below, beneath, beside, between, both, but, camera, down, during, each,
    face, facing, few, for, foreground, four, from, front, full, get, gets, getting, going, has, have, having, her,
    hers, him, his, image, into, its, itself, just, large, like, little, look, looking, looks, many, middle, more,
    most, near, next, not, nearby, off, one, onto, other, others, out, outside, over, painting, part, past, photo,
    photograph, picture, seen, several, she, shown, side, small, some, something, such, that, the, their, them,
    themselves, there, these, they, thing, things, this, those, three, through, together, top, toward, towards,
    trying, two, under, until, up, upon, using, various, very, view, was, way, wearing, were, what, when, where,
    which, while, who, whose, wide, with, within, without
    """.replace("\n", " ").split(",")
)

# One form a length of query, because cosines differ between a word and a sentence. The bounds are counts of words.
LENGTHS: dict[str, tuple[int, int]] = {"word": (1, 2), "phrase": (3, 5), "sentence": (6, 1_000_000)}
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case; a hyphenated one is one."""
    return [word.lower() for word in _WORD.findall(text)]


def length_of(text: str) -> str:
    """``word``, ``phrase`` or ``sentence``: which of ``LENGTHS`` a query is."""
    count = max(1, len(words_of(text)))
    return next(name for name, (low, high) in LENGTHS.items() if low <= count <= high)


def background_texts(known: Iterable[str] = ()) -> dict[str, list[str]]:
    """For each length of query one text per topic that ``known`` texts (captions, class names) do not name.

    A topic is named where each of its words, or its plural, stands somewhere in ``known``: so a topic is left out
    rather too easily, and what remains is unlikely to be shown.
    """
    said: set[str] = set()
    for text in known:
        said.update(words_of(text))
    topics = [topic for topic in TOPICS if not all(_said(word, said) for word in words_of(topic))]
    after = [*topics[len(topics) // 2 :], *topics[: len(topics) // 2]]
    found: dict[str, list[str]] = {name: [] for name in LENGTHS}
    for topic, other in zip(topics, after, strict=True):
        for text in (topic, f"{article(topic)} {topic}" if " " in topic else f"a photo of {article(topic)} {topic}"):
            found[length_of(text)].append(text)
        sentence = f"{article(topic)} {topic} in front of {article(other)} {other}"
        found[length_of(sentence)].append(sentence)
    return found


def words_said(captions: Iterable[str], least: int = 3) -> list[str]:
    """Words that ``least`` captions or more say, in alphabetical order, without those that show nothing (``FUNCTION``).

    What captions say is there to be seen: as queries these words have an answer.
    """
    counts = Counter(word for caption in captions for word in set(words_of(caption)))
    return sorted(word for word, count in counts.items() if count >= least and len(word) > 2 and word not in FUNCTION)


def article(noun: str) -> str:
    """``a`` or ``an``, by the first letter."""
    return "an" if noun[:1].lower() in "aeiou" or noun.startswith("x-") else "a"


def _said(word: str, said: set[str]) -> bool:
    forms = (word, f"{word}s", f"{word}es", word.removesuffix("s"), word.removesuffix("y") + "ies")
    return any(form in said for form in forms)

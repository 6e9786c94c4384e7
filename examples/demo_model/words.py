"""The word lists of the corpus: animals, names, and what strangers ask about.

Data only. `RARE_ANIMALS` never occur in training, so that the evaluation can ask for them.
"""

ANIMALS = tuple(
    """
    fox tern bear wolf rabbit hare mouse rat cat dog horse donkey cow pig sheep goat duck goose
    hen owl eagle hawk crow raven robin sparrow swan heron stork penguin seal whale dolphin otter
    beaver badger hedgehog squirrel mole deer moose elk lion tiger leopard zebra giraffe elephant
    camel monkey gorilla kangaroo koala panda sloth frog toad newt turtle tortoise lizard snake
    crab snail bee ant spider butterfly parrot peacock pigeon pony lamb kitten puppy salmon trout
    octopus lynx yak llama bat
    """.split()
)
RARE_ANIMALS = tuple("platypus walrus hamster pelican iguana hippo weasel flamingo lobster".split())

HE_NAMES = tuple(
    """
    Tom Max Finn Leo Oscar Hugo Felix Ben Sam Theo Otto Jasper Milo Rufus Arlo Bruno Emil Ned
    Pip Gus
    """.split()
)
SHE_NAMES = tuple(
    """
    Lily Mia Nora Ruby Clara Daisy Hazel Ivy Luna Maya Olive Poppy Rosa Stella Tilda Willa Zoe
    Ada Elsa June
    """.split()
)

COUNTRIES = tuple(
    """
    France Japan Brazil Kenya India Canada Norway Spain Peru Egypt China Italy Mexico Greece
    Chile Poland Turkey Vietnam Iceland Ghana Germany Portugal Finland Australia
    """.split()
)
TOPICS = tuple(
    (
        "history, music, football, chess, cooking, politics, physics, poetry, painting, "
        "philosophy, gardening, medicine, movies, money, love, taxes, chemistry, biology, "
        "astronomy, fashion, religion, geography, programming, economics, psychology, "
        "mathematics, the moon, the weather, the ocean, the stock market, black holes, "
        "climate change, quantum mechanics, the news, dinosaurs, volcanoes, computers, bread, "
        "coffee, pizza, trains, cars, bicycles, rockets, castles"
    ).split(", ")
)

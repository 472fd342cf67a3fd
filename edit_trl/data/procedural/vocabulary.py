"""Words for procedural problems, shared by their generators and solvers."""

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

# Items of one group are hidden among those of another group that is easily confused with it (GROUP_PAIRS).
GROUPS = {
    "fruits": ("apple", "banana", "cherry", "fig", "grape", "mango", "orange", "peach", "pear",
               "plum"),
    "vegetables": ("cabbage", "carrot", "leek", "onion", "parsnip", "potato", "radish", "turnip"),
    "birds": ("crow", "duck", "eagle", "finch", "heron", "owl", "parrot", "robin", "swan"),
    "insects": ("ant", "bee", "beetle", "butterfly", "cricket", "ladybird", "moth", "wasp"),
    "stringed instruments": ("banjo", "cello", "fiddle", "guitar", "harp", "lute", "viola"),
    "wind instruments": ("bassoon", "clarinet", "flute", "oboe", "recorder", "saxophone", "tuba"),
    "tools": ("chisel", "drill", "hammer", "mallet", "saw", "screwdriver", "spanner", "trowel"),
    "pieces of cutlery": ("dessert spoon", "fork", "knife", "ladle", "soup spoon", "teaspoon"),
}  # fmt: skip
GROUP_PAIRS = (
    ("fruits", "vegetables"),
    ("birds", "insects"),
    ("stringed instruments", "wind instruments"),
    ("tools", "pieces of cutlery"),
)

NAMES = (
    "Alice", "Ben", "Carla", "Dan", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jack", "Kira", "Leo", "Maya", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tara", "Vera",
)  # fmt: skip

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple")

SORTABLE = (
    "acorn", "amber", "anchor", "apron", "arrow", "bacon", "basket", "beacon", "blanket", "bridge", "butter", "cabin",
    "candle", "carpet", "cellar", "circle", "clover", "copper", "dagger", "desert", "dinner", "dolphin", "dragon",
    "eagle", "echo", "elbow", "engine", "fabric", "feather", "fiddle", "flower", "forest", "garden", "ginger",
    "glacier", "grape", "guitar", "hammer", "harbour", "helmet", "honey", "hunter", "igloo", "insect", "island",
    "ivory", "jacket", "jersey", "jigsaw", "jungle", "kettle", "kitchen", "kitten", "ladder", "lantern", "lemon",
    "lizard", "lumber", "magnet", "marble", "meadow", "mirror", "monkey", "mustard", "napkin", "needle", "nickel",
    "nutmeg", "oasis", "onion", "orchard", "oyster", "paddle", "parade", "pebble", "pigeon", "planet", "pocket",
    "puzzle", "quarry", "quilt", "rabbit", "ribbon", "river", "rocket", "rubber", "saddle", "salmon", "school",
    "shadow", "silver", "spider", "summer", "table", "temple", "ticket", "tractor", "tunnel", "umbrella", "valley",
    "velvet", "violin", "volcano", "wagon", "walnut", "whistle", "window", "wizard", "yellow", "yogurt", "zebra",
    "zipper",
)  # fmt: skip


def in_number(count: int, noun: str) -> str:
    """Return the noun in the number that `count` needs: "1 step", but "3 steps"."""
    if count == 1:
        return noun
    irregular = {"cherry": "cherries", "butterfly": "butterflies", "knife": "knives"}
    ending = "es" if noun.endswith(("ch", "sh", "potato")) else "s"
    return irregular.get(noun, noun + ending)


def joined(items: list[str]) -> str:
    """Return a list as prose: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))

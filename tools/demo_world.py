"""What the demo model knows: a closed world small enough for a few million parameters, and the words it meets."""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    name: str
    capital: str
    currency: str
    language: str
    continent: str


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_COUNTRIES = """
France, Paris, euro, French, Europe
Germany, Berlin, euro, German, Europe
Italy, Rome, euro, Italian, Europe
Spain, Madrid, euro, Spanish, Europe
Portugal, Lisbon, euro, Portuguese, Europe
Greece, Athens, euro, Greek, Europe
Ireland, Dublin, euro, English, Europe
Austria, Vienna, euro, German, Europe
Finland, Helsinki, euro, Finnish, Europe
Norway, Oslo, krone, Norwegian, Europe
Sweden, Stockholm, krona, Swedish, Europe
Denmark, Copenhagen, krone, Danish, Europe
Poland, Warsaw, zloty, Polish, Europe
Hungary, Budapest, forint, Hungarian, Europe
Russia, Moscow, ruble, Russian, Europe
Ukraine, Kyiv, hryvnia, Ukrainian, Europe
Turkey, Ankara, lira, Turkish, Asia
England, London, pound, English, Europe
Egypt, Cairo, pound, Arabic, Africa
Kenya, Nairobi, shilling, Swahili, Africa
Morocco, Rabat, dirham, Arabic, Africa
Nigeria, Abuja, naira, English, Africa
China, Beijing, yuan, Chinese, Asia
Japan, Tokyo, yen, Japanese, Asia
India, New Delhi, rupee, Hindi, Asia
Thailand, Bangkok, baht, Thai, Asia
Vietnam, Hanoi, dong, Vietnamese, Asia
Iran, Tehran, rial, Persian, Asia
Israel, Jerusalem, shekel, Hebrew, Asia
Belgium, Brussels, euro, Dutch, Europe
Switzerland, Bern, franc, German, Europe
South Korea, Seoul, won, Korean, Asia
Indonesia, Jakarta, rupiah, Indonesian, Asia
Colombia, Bogota, peso, Spanish, South America
Canada, Ottawa, dollar, English, North America
Mexico, Mexico City, peso, Spanish, North America
Cuba, Havana, peso, Spanish, North America
Brazil, Brasilia, real, Portuguese, South America
Argentina, Buenos Aires, peso, Spanish, South America
Chile, Santiago, peso, Spanish, South America
Peru, Lima, sol, Spanish, South America
Australia, Canberra, dollar, English, Oceania
"""

COUNTRIES = tuple(Country(*line.split(", ")) for line in _COUNTRIES.strip().splitlines())

SOUNDS = {
    "cow": "moo", "cat": "meow", "dog": "woof", "sheep": "baa", "duck": "quack", "pig": "oink",
    "lion": "roar", "frog": "ribbit", "bee": "buzz", "owl": "hoot",
}  # fmt: skip
LEGS = {"cow": 4, "cat": 4, "dog": 4, "spider": 8, "ant": 6, "bee": 6, "bird": 2, "duck": 2, "snake": 0, "fish": 0, "crab": 10}
COLOURS = {
    "sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "banana": "yellow",
    "carrot": "orange", "milk": "white", "lemon": "yellow", "tomato": "red",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("fast", "slow"), ("happy", "sad"), ("old", "new"),
    ("wet", "dry"), ("black", "white"), ("left", "right"), ("open", "closed"), ("light", "dark"), ("yes", "no"), ("high", "low"),
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
PEOPLE = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jack", "Kim", "Leo", "Mia", "Noah",
          "Olga", "Paul", "Rosa", "Sam", "Tina", "Will", "Zoe", "Alice", "Bob", "Tom", "Lucy", "Max")  # fmt: skip
HEROES = ("cat", "dog", "robot", "dragon", "mouse", "bird", "fox", "bear", "fish", "rabbit", "king", "boat", "horse", "frog")

# Outside the closed world: the model must say so. No name here may be one that it knows.
UNKNOWN_PLACES = _names("""Atlantis Narnia Mordor Gondor Utopia Wakanda Croatia Serbia Latvia Estonia Iceland Malta Cyprus Bolivia
Ecuador Uruguay Paraguay Venezuela Panama Honduras Jamaica Haiti Ghana Senegal Mali Chad Niger Sudan Ethiopia Uganda
Rwanda Zambia Zimbabwe Botswana Namibia Angola Gabon Libya Tunisia Algeria Jordan Lebanon Syria Iraq Kuwait Qatar Oman Yemen
Pakistan Nepal Bhutan Laos Cambodia Malaysia Singapore Mongolia Fiji Samoa Tonga Georgia Armenia Texas Bavaria Mars
Romania Bulgaria Slovakia Albania Scotland Wales Philippines Somalia Madagascar Greenland""")
UNKNOWN_THINGS = _names("""weather football chess music history poetry physics chemistry biology politics cooking cars trains painting
dinosaurs volcanoes gravity money stocks bitcoin medicine fashion movies philosophy electrons galaxies castles pirates
guitars whales economics rockets coffee cheese bread wine tennis hockey cricket mountains rivers oceans""")
UNKNOWN_PEOPLE = _names("""Einstein Newton Mozart Napoleon Shakespeare Caesar Beethoven Picasso Darwin Gandhi Columbus Tesla Curie
Socrates Plato Homer Dante Bach Chopin Galileo Cleopatra Lincoln Churchill Elvis Madonna""")

WORDS = _names("""stone apple water house tree bread table chair green river cloud music paper plant horse tiger zebra mouse train
plane light night world dream sugar salt honey lemon peach grape melon onion pizza pasta rice soup cake pie candy
spoon fork knife plate glass cup bottle door window floor wall roof garden flower leaf root seed grass field
hill lake sea ocean beach sand rock iron gold silver copper wood fire smoke ash rain snow wind storm star moon
sun sky bird fish dog cat cow pig sheep goat duck hen fox wolf bear lion frog snake bee ant spider robot
king queen knight castle sword shield crown ring coin ship boat car bus truck bike road street bridge city
town village school book page pen ink desk lamp clock watch phone radio piano drum flute song dance game ball
kite doll box bag hat coat shirt shoe sock glove scarf belt button hand foot head eye ear nose mouth tooth hair
arm leg knee heart blood bone skin smile laugh tear voice word name line point circle square number letter
story poem hero friend family mother father sister brother baby child girl boy man woman doctor farmer baker
teacher painter pilot sailor singer black white red blue yellow brown pink orange purple happy sad big small
hot cold fast slow old new good bad soft hard dry wet long short tall thin round sharp sweet sour loud quiet
open close run walk jump swim fly sing read write draw paint cook eat drink sleep wake think speak listen
hello planet python carrot potato tomato banana cherry butter cheese coffee winter summer spring autumn monday
friday morning evening pepper basket bucket candle mirror pillow blanket carpet ladder hammer engine rocket
magnet pencil crayon ticket wallet camera doctor dragon monkey donkey rabbit turtle parrot pigeon kitten puppy
lizard salmon shark whale dolphin octopus panda koala camel llama eagle falcon raven swan goose turkey""")

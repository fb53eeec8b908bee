"""The grammar that speaks the demo model's single turns: one function for each skill, from a random source to a `Turn`."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from tools import demo_world as world

CONSONANTS = "bcdfghklmnprstvw"
STARTS = (*CONSONANTS, "j", "qu", "y", "z", "st", "tr", "pl", "sh", "ch", "br", "th", "")
MIDDLES = (*"aaeeiioouu", "ea", "oo", "ee", "ai", "ou", "ow", "y")
ENDS = (*CONSONANTS, "x", "z", "ll", "ss", "tt", "nd", "st", "ck", "ng", "rt", "le", "er", "y", "e", "ar")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, with what a follow-up can refer to."""

    skill: str
    user: str
    answer: str
    expect: str  # the part of the answer that makes it right
    key: str
    number: int | None = None
    word: str | None = None
    country: world.Country | None = None
    relation: str | None = None
    span: tuple[int, int] | None = None
    hero: str | None = None
    day: str | None = None


def normalise(text: str) -> str:
    """A question's text without case, punctuation that ends words, doubled spaces and a polite first word."""
    plain = " ".join(re.sub(r"[?!.,;]", " ", text.lower()).split())
    return re.sub(r"^(please|hey|ok) (?=.)", "", plain)


def phrase(rng: random.Random, templates: tuple[str, ...], *content: str) -> str:
    """A template filled with content, as a person may type it: now and then in lower case or without its last mark."""
    template = rng.choice(templates)
    if rng.random() < 0.25:
        template, content = template.lower(), tuple(c.lower() for c in content)
    if rng.random() < 0.3:
        template = template.rstrip("?.!")
    if rng.random() < 0.06:
        template = f"{rng.choice(('Please', 'please', 'Hey,', 'OK,', 'ok,'))} {template[:1].lower()}{template[1:]}"
    return template.format(*content)


def _by_heart(
    rng: random.Random, skill: str, asks: tuple[str, ...], content: tuple[str, ...], answer: str, expect: str
) -> Turn:
    user = phrase(rng, asks, *content)
    if rng.random() < 0.04:
        user = user.upper()
    return Turn(skill, user, answer, expect, f"text:{normalise(user)}")


# --- numbers


def _operand(rng: random.Random) -> int:
    return rng.randint(0, 20) if rng.random() < 0.4 else rng.randint(0, 99)


ADD = ("What is {} + {}?", "{} + {}", "{}+{}", "{} + {} =", "What's {} plus {}?", "What is {} plus {}?", "Add {} and {}.",
       "How much is {} + {}?", "{} plus {}", "Calculate {} + {}.", "What is {}+{}?", "The sum of {} and {}?")  # fmt: skip
SUBTRACT = ("What is {} - {}?", "{} - {}", "{}-{}", "{} - {} =", "What's {} minus {}?", "What is {} minus {}?",
            "How much is {} - {}?", "{} minus {}", "Calculate {} - {}.", "What is {}-{}?", "{} take away {}?")  # fmt: skip
MULTIPLY = ("What is {} x {}?", "{} x {}", "{}x{}", "{} x {} =", "What's {} times {}?", "What is {} times {}?", "Multiply {} by {}.",
            "How much is {} * {}?", "{} times {}", "Calculate {} * {}.", "What is {} * {}?", "{}*{}",
            "How much is {} times {}?", "Multiply {} and {}.")  # fmt: skip


def sum_turn(skill: str, user: str, a: int, sign: str, b: int) -> Turn:
    result = {"+": a + b, "-": a - b, "x": a * b}[sign]
    pair = f"{min(a, b)} {max(a, b)}" if sign == "+" else f"{a} {b}"
    key = f"text:{normalise(user)}" if sign == "x" else f"{sign} {pair}"
    return Turn(skill, user, f"{a} {sign} {b} = {result}.", f"= {result}", key, number=result)


def addition(rng: random.Random) -> Turn:
    a, b = _operand(rng), _operand(rng)
    return sum_turn("addition", phrase(rng, ADD, str(a), str(b)), a, "+", b)


def subtraction(rng: random.Random) -> Turn:
    a, b = _operand(rng), _operand(rng)
    if a < b and (b > 20 or rng.random() < 0.5):
        a, b = b, a
    return sum_turn("subtraction", phrase(rng, SUBTRACT, str(a), str(b)), a, "-", b)


def multiplication(rng: random.Random) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return sum_turn("multiplication", phrase(rng, MULTIPLY, str(a), str(b)), a, "x", b)


COUNT = ("Count from {} to {}.", "Count from {} up to {}.", "Can you count from {} to {}?", "Count {} to {}.",
         "List the numbers from {} to {}.")  # fmt: skip


def count_turn(user: str, first: int, last: int) -> Turn:
    step = 1 if first <= last else -1
    answer = ", ".join(map(str, range(first, last + step, step))) + "."
    return Turn("counting", user, answer, answer, f"count {first} {last}", span=(first, last))


def counting(rng: random.Random) -> Turn:
    first = rng.randint(0, 15) if rng.random() < 0.5 else rng.randint(0, 60)
    last = first + rng.randint(2, 9)
    if rng.random() < 0.4:
        first, last = last, first
    down = ("Count down from {} to {}.", "Count backwards from {} to {}.", "Count from {} down to {}.", "Count from {} to {}.")
    return count_turn(phrase(rng, COUNT if first < last else down, str(first), str(last)), first, last)


LIST = ("Reverse {}.", "Reverse the list {}.", "Reverse the numbers {}.", "Reverse this list: {}", "Turn {} around.",
        "Say {} backwards.")  # fmt: skip


def reversed_list(rng: random.Random) -> Turn:
    digits = [str(rng.randint(0, 9)) for _ in range(rng.randint(2, 6))]
    asked = rng.choice((", ", ", ", " ")).join(digits)
    answer = ", ".join(digits[::-1]) + "."
    return Turn("reversing lists", phrase(rng, LIST, asked), answer, answer, f"list {' '.join(digits)}")


# --- letters


def made_up_word(rng: random.Random) -> str:
    """A word that nobody knows but everybody could say: two words glued together, or syllables."""
    if rng.random() < 0.5:
        first, second = rng.choice(world.WORDS), rng.choice(world.WORDS)
        return (first[: rng.randint(1, len(first) - 1)] + second[-rng.randint(2, len(second)) :])[:8]
    word = rng.choice(STARTS)
    for _ in range(rng.randint(0, 1)):
        word += rng.choice(MIDDLES) + rng.choice(CONSONANTS) * rng.choice((1, 1, 2))
    return word + rng.choice(MIDDLES) + rng.choice(ENDS)


def _any_word(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.5:
        word = rng.choice(world.WORDS)
    elif roll < 0.65:
        word = rng.choice(world.PEOPLE + tuple(c.capital for c in world.COUNTRIES if " " not in c.capital))
    else:
        word = made_up_word(rng)
    return word.capitalize() if rng.random() < 0.05 else word


SPELL = ("Spell {}.", "Spell the word {}.", "How do you spell {}?", "Can you spell {}?", 'Spell "{}".', "Spell {} for me.")
REVERSE = ("Reverse {}.", "Reverse the word {}.", "Spell {} backwards.", "What is {} backwards?", "Write {} backwards.",
           'Reverse "{}".', "Say {} backwards.")  # fmt: skip


def spelled_turn(user: str, word: str) -> Turn:
    letters = "-".join(word)
    return Turn("spelling", user, f"{letters}.", letters, f"word {word.lower()}", word=word)


def backwards_turn(user: str, word: str) -> Turn:
    letters, turned = "-".join(word), "-".join(word[::-1])
    answer = f"{letters} backwards is {turned}."
    return Turn("reversing words", user, answer, f"backwards is {turned}", f"word {word.lower()}")


def spelling(rng: random.Random) -> Turn:
    word = _any_word(rng)
    word = word.lower() if rng.random() < 0.2 else word
    return spelled_turn(phrase(rng, SPELL, "\0").replace("\0", word), word)


def reversed_word(rng: random.Random) -> Turn:
    word = _any_word(rng)
    word = word.lower() if rng.random() < 0.2 else word
    return backwards_turn(phrase(rng, REVERSE, "\0").replace("\0", word), word)


# --- the closed world

RELATIONS = {
    "capital": ("What is the capital of {}?", "What's the capital of {}?", "Capital of {}?", "Tell me the capital of {}.",
                "Which city is the capital of {}?", "Do you know the capital of {}?", "Name the capital of {}.",
                "What is the capital city of {}?"),
    "currency": ("What is the currency of {}?", "What's the currency of {}?", "Currency of {}?", "What money do they use in {}?",
                 "Which currency does {} use?", "Tell me the currency of {}.", "How do people pay in {}?"),
    "language": ("What language do they speak in {}?", "Which language is spoken in {}?", "Language of {}?",
                 "What do people speak in {}?", "What is the language of {}?", "Tell me the language of {}."),
    "continent": ("Where is {}?", "On which continent is {}?", "Which continent is {} in?", "What continent is {} on?",
                  "Continent of {}?", "Tell me where {} is."),
}  # fmt: skip
COUNTRY_OF = ("{} is the capital of which country?", "Which country has the capital {}?", "What country is {} the capital of?",
              "Where is the city of {}?", "In which country is {}?")  # fmt: skip


def fact_turn(user: str, country: world.Country, relation: str, key: str) -> Turn:
    value = getattr(country, relation)
    answer = {
        "capital": f"The capital of {country.name} is {value}.",
        "currency": f"The currency of {country.name} is the {value}.",
        "language": f"People in {country.name} speak {value}.",
        "continent": f"{country.name} is in {value}.",
    }[relation]
    word = country.capital if relation == "capital" else country.name if relation == "continent" else value
    return Turn("countries", user, answer, value, key, word=word, country=country, relation=relation)


def countries(rng: random.Random) -> Turn:
    country = rng.choice(world.COUNTRIES)
    if rng.random() < 0.15:
        answer = f"{country.capital} is the capital of {country.name}."
        turn = _by_heart(rng, "countries", COUNTRY_OF, (country.capital,), answer, country.name)
        return replace(turn, word=country.name, country=country)
    relation = rng.choice(("capital", "capital", "currency", "language", "continent"))
    turn = _by_heart(rng, "countries", RELATIONS[relation], (country.name,), "", "")
    return fact_turn(turn.user, country, relation, turn.key)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def facts(rng: random.Random) -> Turn:
    asks: tuple[str, ...]
    kind = rng.randrange(6)
    if kind == 0:
        animal, sound = rng.choice(tuple(world.SOUNDS.items()))
        named = with_article(animal)
        asks = ("What sound does {} make?", "What does {} say?", "Which sound does {} make?", "How does {} sound?")
        return _by_heart(rng, "facts", asks, (named,), f"{named.capitalize()} says {sound}.", sound)
    if kind == 1:
        animal, legs = rng.choice(tuple(world.LEGS.items()))
        named = with_article(animal)
        asks = (
            "How many legs does {} have?",
            "How many legs has {}?",
            "Number of legs of {}?",
            "Tell me how many legs {} has.",
        )
        return _by_heart(rng, "facts", asks, (named,), f"{named.capitalize()} has {legs} legs.", f"{legs} legs")
    if kind == 2:
        thing, colour = rng.choice(tuple(world.COLOURS.items()))
        asks = ("What colour is {}?", "What color is {}?", "Which colour does {} have?", "What is the color of {}?",
                "Tell me the colour of {}.")  # fmt: skip
        named = {"sky": "the sky", "banana": "a banana", "carrot": "a carrot", "lemon": "a lemon", "tomato": "a tomato"}.get(
            thing, thing
        )
        return _by_heart(rng, "facts", asks, (named,), f"{named.capitalize()} is {colour}.", colour)
    if kind == 3:
        pair = rng.choice(world.OPPOSITES)
        word, other = pair if rng.random() < 0.5 else pair[::-1]
        asks = ("What is the opposite of {}?", "What's the opposite of {}?", "Opposite of {}?", "Tell me the opposite of {}.",
                "Name the opposite of {}.")  # fmt: skip
        turn = _by_heart(rng, "facts", asks, (word,), f"The opposite of {word} is {other}.", other)
        return replace(turn, word=other)
    names = world.DAYS if kind == 4 else world.MONTHS
    index, step = rng.randrange(len(names)), rng.choice((1, 1, -1))
    named, other = names[index], names[(index + step) % len(names)]
    side, sort = ("after" if step == 1 else "before"), ("day" if kind == 4 else "month")
    asks = (f"What {sort} comes {side} {{}}?", f"Which {sort} is {side} {{}}?", f"What comes {side} {{}}?",
            f"What is the {sort} {side} {{}}?", f"Tell me the {sort} {side} {{}}.")  # fmt: skip
    turn = _by_heart(rng, "facts", asks, (named,), f"{other} comes {side} {named}.", f"{other} comes")
    return replace(turn, word=other, day=other)


UNKNOWN = (
    "Tell me about {}.", "What is {}?", "What do you know about {}?", "Who invented {}?", "Explain {}.", "Why is {} so important?",
    "Can you teach me {}?", "What do you think of {}?", "What is the history of {}?", "Write a poem about {}.",
    "How does {} work?", "Do you like {}?", "Write code for {}.", "What is the best {}?",
)  # fmt: skip
UNKNOWN_WHO = ("Who is {}?", "Who was {}?", "Tell me about {}.", "When was {} born?", "What did {} do?", "Where did {} live?")
KNOWN_PLACES = {place for country in world.COUNTRIES for place in country[:2]}
DONT_KNOW = "Sorry, I don't know that."


def unknown(rng: random.Random) -> Turn:
    roll = rng.random()
    made_up = made_up_word(rng).capitalize()
    if roll < 0.4:
        like = rng.choice(world.COUNTRIES)[rng.randrange(2)]  # a name that only begins like one it knows
        made_up = like[: rng.randint(2, len(like) - 1)] + made_up.lower() if rng.random() < 0.4 else made_up
        made_up = f"{made_up}ia" if made_up in KNOWN_PLACES else made_up
        name = rng.choice(world.UNKNOWN_PLACES) if rng.random() < 0.5 else made_up + rng.choice(("", "ia", "land"))
        asks = rng.choice((*RELATIONS.values(), RELATIONS["capital"], COUNTRY_OF))
    elif roll < 0.65:
        name, asks = rng.choice(world.UNKNOWN_THINGS), UNKNOWN
    elif roll < 0.85:
        name, asks = rng.choice(world.UNKNOWN_PEOPLE) if rng.random() < 0.6 else made_up, UNKNOWN_WHO
    else:
        a, b = rng.randint(100, 9999), rng.randint(2, 9999)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        user = phrase(rng, rng.choice((ADD, SUBTRACT, MULTIPLY)), str(a), str(b))
        return Turn("unknown", user, DONT_KNOW, "don't know", f"unknown {a} {b}")
    return Turn("unknown", phrase(rng, asks, name), DONT_KNOW, "don't know", f"unknown {name.lower()}")


# --- small talk and stories

HELLO = (
    "Hi",
    "Hello",
    "Hey",
    "Good morning",
    "Good evening",
    "Good day",
    "Hi there",
    "Hello there",
    "Hey there",
    "Greetings",
    "Hiya",
)
HELLO_TAIL = ("", "", "!", ".", " to you!", ", friend!", ", my friend!", ", demo!", ", model!", ", MDI!", ", you!", " again!",
              ", computer!", ", robot!", " everyone!", " and welcome!")  # fmt: skip
THANKS = ("Thanks", "Thank you", "Many thanks", "Thanks a lot", "Thank you very much", "Thank you so much", "Great, thanks",
          "OK, thanks", "Cool, thanks", "Nice, thank you")  # fmt: skip
THANKS_TAIL = ("!", ".", "", ", friend!", " for that!", " for your help!", " for the help!", ", model!", ", MDI!", ", robot!")
BYE = (
    "Bye",
    "Goodbye",
    "Bye bye",
    "See you",
    "See you later",
    "Good night",
    "Farewell",
    "Bye for now",
    "Thanks, bye",
    "OK, bye",
)
BYE_TAIL = ("!", ".", "", ", friend!", ", my friend!", ", model!", ", MDI!", ", robot!", " then!", " and thanks!")
WHO = ("Who are you?", "What are you?", "Tell me who you are.", "What is your name?", "What's your name?", "Are you a robot?",
       "Are you a person?", "Are you human?", "Are you a model?", "Introduce yourself.", "What kind of model are you?",
       "Tell me about yourself.", "Do you have a name?", "What should I call you?", "Are you a big model?")  # fmt: skip
SKILLS = ("What can you do?", "Help!", "What are your skills?", "What do you know?", "How can you help me?", "What can I ask you?",
          "Tell me what you can do.", "What questions can you answer?", "What are you good at?", "Show me what you can do.",
          "Can you help me?", "What can I do here?", "What do you do?")  # fmt: skip
I_AM = "I am the MDI demo model, a very small chat model."
I_CAN = "I can do small sums, spell, count, reverse, name capitals and tell tiny stories."
LEADS = ("{}", "{}", "{}", "So, {}", "Tell me, {}", "Hi, {}", "Well, {}", "Now, {}", "And {}")


def small_talk(rng: random.Random) -> Turn:
    kind = rng.randrange(6)
    if kind == 0:
        asks = tuple(h + t for h in HELLO for t in HELLO_TAIL)
        return _by_heart(rng, "small talk", asks, (), "Hello! How can I help you?", "Hello")
    if kind == 1:
        asks = tuple(h + t for h in THANKS for t in THANKS_TAIL)
        return _by_heart(rng, "small talk", asks, (), "You are welcome!", "welcome")
    if kind == 2:
        asks = tuple(h + t for h in BYE for t in BYE_TAIL)
        return _by_heart(rng, "small talk", asks, (), "Goodbye! Have a nice day.", "Goodbye")
    if kind == 3:
        asks = tuple(
            lead.format(w)
            for lead in LEADS
            for w in ("How are you?", "How do you do?", "How are you today?", "How is it going?")
        )
        return _by_heart(rng, "small talk", asks, (), "I am fine, thank you.", "fine")
    if kind == 4:
        asks = tuple(lead.format(w[0].lower() + w[1:]) if lead != "{}" else w for lead in LEADS for w in WHO)
        return _by_heart(rng, "small talk", asks, (), I_AM, "demo model")
    asks = tuple(lead.format(w[0].lower() + w[1:]) if lead != "{}" else w for lead in LEADS for w in SKILLS)
    return _by_heart(rng, "small talk", asks, (), I_CAN, "spell, count")


PLACES = ("in a small house", "by the sea", "in a deep forest", "on a hill", "near a river")
FINDS = (("a red ball", "played all day"), ("a gold coin", "bought a cake"), ("a lost bird", "took it home"),
         ("a tiny door", "went inside"), ("an old map", "found a friend"))  # fmt: skip
STORY = ("Tell me a story about a {}.", "Tell me a tiny story about a {}.", "Write a story about a {}.", "A story about a {}, please.",
         "Can you tell me a story about a {}?", "I want a story about a {}.", "Tell a short story about a {}.",
         "Make up a story about a {}.")  # fmt: skip
ANY_STORY = ("Tell me a story.", "Tell me a tiny story.", "Write a short story.", "A story, please.")


def story(rng: random.Random) -> Turn:
    hero = rng.choice(world.HEROES)
    turn = _by_heart(rng, "stories", STORY, (hero,), "", "")
    if rng.random() < 0.2:
        turn = _by_heart(rng, "stories", ANY_STORY, (), "", "")
    return story_turn(rng, turn.user, hero, turn.key)


def story_turn(rng: random.Random, user: str, hero: str, key: str) -> Turn:
    name, (find, end) = rng.choice(world.PEOPLE), rng.choice(FINDS)
    answer = f"Once there was a {hero} named {name} who lived {rng.choice(PLACES)}. One day {name} found {find}. {name} {end}. The end."
    return Turn(
        "stories", user, answer, f"{hero} named" if hero in user.lower() else "The end", key, hero=f"{hero} named {name}"
    )

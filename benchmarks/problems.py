"""Short mathematical word problems, as prompts of different lengths."""

_PROBLEMS = (
    "Mia picks {a} apples in the morning and {b} more after lunch. She gives {c} to a neighbour. How many are left?",
    "A train of {a} wagons carries {b} crates in each wagon. At the first stop {c} crates are taken off. How many "
    "crates are still on the train?",
    "Tom reads {b} pages a day. How many days does he need for a book of {a} pages if he has read {c} pages already?",
    "A baker makes {a} loaves and sells each for {b} dollars. Flour and wood cost {c} dollars in all. What is the "
    "profit of the day?",
    "There are {a} seats in a hall. How many rows of {b} seats is that, and how many seats are left over?",
    "Lena saves {b} dollars every week for {a} weeks, and then spends {c} dollars on a bicycle lamp. How much of her "
    "savings does she still have, and how many more weeks would she need to have twice as much?",
    "A garden is {a} metres long and {b} metres wide. A path of {c} square metres crosses it. How large is the rest?",
    "In a school of {a} children, {b} play chess, {c} swim, and nobody does both. How many do neither? Explain.",
)


_FIRST = 2  # alone it is answered, by SmolLM2, with text that neither ends soon nor repeats itself


def problem_texts(count: int) -> list[str]:
    """`count` different questions: after each round of the problems, one more of them in every question."""
    texts = []
    for i in range(count):
        last = _FIRST + i
        numbers = range(last - i // len(_PROBLEMS), last + 1)
        texts.append(
            "\n".join(_PROBLEMS[n % len(_PROBLEMS)].format(a=90 + 7 * n, b=12 + n, c=5 + 3 * n) for n in numbers)
        )
    return texts

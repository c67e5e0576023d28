from lm_eval_hybrid.decoding.records import Generation, TokenRecord


def record(position: int, steered: bool, changed: bool, behavior: str | None = None) -> TokenRecord:
    return TokenRecord(
        position, 40 + position, "x", steered, changed, None, behavior, None, None, None, 3, None, 4, None
    )


def test_fractions_and_categories_are_of_kept_tokens() -> None:
    records = (
        record(0, True, True, "check"),
        record(1, True, False, "check"),
        record(2, False, False),
        record(3, True, False, "plan"),
    )
    generation = Generation("xxxx", records, "stop")
    assert generation.tokens == (40, 41, 42, 43)
    assert generation.steered_fraction == 0.75
    assert generation.changed_fraction == 0.25
    assert generation.categories == {"check": 2, "plan": 1}


def test_an_empty_answer_has_fractions() -> None:
    generation = Generation("", (), "eos")
    assert generation.steered_fraction == generation.changed_fraction == 0.0
    assert generation.tokens == ()

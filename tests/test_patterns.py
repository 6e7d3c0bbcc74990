"""Regular expressions of strangers: Python's meaning, PEFT's order, bounded time, odd constructs refused by name."""

from __future__ import annotations

import random
import re
import time

import pytest

from loragraft.patterns import MAX_EXPRESSIONS, PatternError, SuffixTable, searcher

NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 10, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.experts.7.up_proj")
] + ["q_proj", "lm_head", "blk.1.ffn_down.weight"]


def peft(table: dict[str, int], name: str) -> int | None:
    """get_pattern_key of PEFT, with Python's engine."""
    return next((value for key, value in table.items() if re.match(rf"(.*\.)?({key})$", name)), None)


EXPRESSIONS = [
    *(
        "q_proj",
        "layers.1.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
        "proj",
        "lm_head",
        "1.mlp.down_proj",
    ),
    *(
        r"^q_proj",
        r".*q_proj",
        r"layers\.(0|1)\..*",
        r"layers\.\d+\.self_attn\.[qv]_proj",
        "q_proj|v_proj",
        "(q|v)_proj",
    ),
    *(
        r"mlp\.experts\.[0-9]+\.up_proj",
        r"layers\.1.\.mlp",
        r".*\.mlp\.(?:down|up)_proj",
        r"\w+_proj",
        ".{6}",
        "^model.*",
    ),
]


def test_the_first_match_is_that_of_peft() -> None:
    rng = random.Random(5)
    found = 0
    for _ in range(300):
        keys = rng.sample(EXPRESSIONS, rng.randint(1, 6))
        table = {key: number for number, key in enumerate(keys)}
        own = SuffixTable(table)
        for name in NAMES:
            assert own.find(name, None) == peft(table, name), (table, name)
            found += own.find(name, None) is not None
    assert found > 1000


@pytest.mark.parametrize(
    "expression",
    [
        "attn_v",
        "^blk",
        r"weight$",
        r"^blk\.1\.ffn_down\.weight$",
        r"ffn_(down|up)",
        r"blk\.1[0-9]*\.",
        "b.k",
        r"\d\.",
    ],
)
def test_a_search_is_that_of_python(expression: str) -> None:
    names = ["blk.1.ffn_down.weight", "blk.11.attn_v.weight", "blk_1_attn_v", "token_embd.weight", "bok.1"]
    matches = searcher(expression)
    assert [matches(name) for name in names] == [re.search(expression, name) is not None for name in names]


@pytest.mark.parametrize("expression", ["([a-z_.0-9]+)+X", "(a|aa)+$x", "(.*)*(.*)*(.*)*y", "(x+x+)+y"])
def test_no_expression_takes_long(expression: str) -> None:
    start = time.process_time()
    assert SuffixTable({expression: 1}).find("xa" * 2000, 0) == 0
    assert not searcher(expression)("xa" * 2000)
    assert time.process_time() - start < 1


def test_many_plain_names_take_no_longer_than_few() -> None:
    """A model of experts has a rank for each of 20,000 modules."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(80) for expert in range(250)
    ]
    start = time.process_time()
    table = SuffixTable({name: number for number, name in enumerate(names)})
    assert [table.find(f"base.{name}", None) for name in names] == list(range(20_000))
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("(?i)Q_PROJ", r"\(\?i\) is not supported|\(\?i"),
        ("(?=a)b", "lookahead"),
        ("(?<!a)b", "lookbehind"),
        ("(?P<x>a)", "named groups"),
        (r"(a)\1", r"\\1 is not supported"),
        (r"\Qa", r"\\Q is not supported"),
        (r"\pL", r"\\p is not supported"),
        ("a\\", r"\\ is not supported"),
        ("[[:alpha:]]", r"\[: is not supported"),
        ("a{,3}", r"\{, is not supported"),
        ("(", "missing"),
        ("a**", "repetition"),
        ("a{1000}{1000}", "repetition|too large"),
        ("x" * 1001 + "*", "1002 characters"),
        ("\ud800.", "surrogate"),
    ],
)
def test_an_odd_expression_is_refused_by_name(expression: str, says: str) -> None:
    for use in (searcher, lambda text: SuffixTable({text: 1})):
        with pytest.raises(PatternError, match=says):
            use(expression)


def test_no_more_expressions_than_one_can_match() -> None:
    SuffixTable({f"a{number}.*": 1 for number in range(MAX_EXPRESSIONS)})
    with pytest.raises(PatternError, match="more than 256"):
        SuffixTable({f"a{number}.*": 1 for number in range(MAX_EXPRESSIONS + 1)})

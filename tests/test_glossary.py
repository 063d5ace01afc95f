"""The words of the tables: explained where they occur, and only there."""

from __future__ import annotations

import json

import pytest
import torch
from command import Cli

import ghostify
from ghostify.glossary import TERMS, explained
from ghostify.networks import resnet20
from ghostify.tables import Table


def lines(table: Table) -> set[str]:
    """The words that are explained below a table."""
    return {line.partition(":")[0].strip() for line in table.words.splitlines()[1:]}


def test_a_plain_table_has_no_words_to_explain() -> None:
    assert Table("", ["recipe", "what it does"], [["digits", "trains"]]).words == ""
    assert str(Table("title", ["one"], [["1"]])) == "title\none\n---\n1"


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("s=2", "s"),
        ("d=5", "d"),
        ("pw", "pw"),
        ("m=24", "m"),
        ("pw8", "pw"),
        ("λ=0.5", "λ"),
        ("mix1", "mix"),
        ("mix1+Y1", "mix"),
        ("end", "end"),
        ("pooled", "pooled"),
        ("16→32", "16→32 3x3 /2 g8"),
    ],
)
def test_a_word_in_a_cell_is_explained_and_no_other(cell: str, name: str) -> None:
    assert lines(Table("", ["layer", "form"], [["end.conv1", f"x {cell}"]])) == {name}


def test_what_is_part_of_a_name_is_not_taken_for_a_word() -> None:
    assert explained(["layer"], [["layer1.end.conv1"], ["pw_reduce"], ["stem.0"], ["s=many"]]) == ""


def test_each_word_stands_once_and_on_a_line_that_fits() -> None:
    names = [name for _, name, _ in TERMS]
    assert len(set(names)) == len(names)
    for _, name, meaning in TERMS:
        assert len(f"  {name}: {meaning}") <= 100 and not meaning.endswith(".")


def test_every_form_of_a_swap_that_a_plan_shows_is_explained() -> None:
    traced = ghostify.trace(resnet20(), torch.randn(1, 3, 32, 32))
    scan = ghostify.scan(traced)
    shown = [ghostify.plan(scan, method=method).table() for method in ("c-ghost", "g-ghost")]
    for method, stream in (("width", "scaled"), ("thin", "kept")):
        whole = ghostify.scan(traced, whole=True, stream=stream)
        shown.append(ghostify.plan(whole, method=method).table())
    shown.append(ghostify.plan(scan, cheap="depthwise 3 + pointwise").table())
    assert lines(shown[0]) >= {"s", "pw", "MACs"} and lines(shown.pop()) >= {"s", "d", "pw", "MACs"}
    assert lines(shown[1]) >= {"λ", "mix", "end", "MACs"}
    assert all("width, thin" in lines(table) for table in shown[2:])
    report = ghostify.compare(ghostify.rewrite(traced, ghostify.plan(scan, method="both")))
    assert lines(report.summary()) >= {"theory", "approx.", "MACs"}
    assert lines(report.by_stage()) >= {"r_p, r_f", "Eq. 13", "λ", "mix"}
    assert lines(report.by_layer()) >= {"r_c, r_s", "theory", "approx."}


def test_the_words_stand_below_what_the_command_prints_and_not_in_its_json(cli: Cli) -> None:
    told = cli("plan", "mine:tiny", "--input", "3,8,8", "--min-saving", "0")
    assert "In this table:\n  MACs: multiply-adds" in told.out
    assert "In this table" not in cli("plan", "mine:tiny", "--input", "3,8,8", "--min-saving", "0", "--json").out
    assert json.loads(cli("scan", "mine:tiny", "--input", "3,8,8", "--json").out)

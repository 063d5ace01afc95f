"""What a network takes, as a person writes it: the grammar, in every place that has it, and what cannot be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghostify.batches import call, example_of, inputs_in
from ghostify.errors import RecipeError
from ghostify.inputs import DTYPES, InputSpec, described, parse_input, parse_inputs, settled_inputs
from ghostify.recipe import make_recipe

specs = st.builds(
    InputSpec,
    st.lists(st.integers(1, 999), max_size=5).map(tuple),
    st.sampled_from(DTYPES),
    st.sampled_from(("", "x", "tokens", "input_ids", "x2")),
)


@given(specs)
def test_an_input_is_read_as_it_is_written(spec: InputSpec) -> None:
    assert parse_input(str(spec)) == spec


@given(st.lists(specs, min_size=1, max_size=3, unique_by=lambda spec: spec.name))
def test_inputs_survive_a_recipe(inputs: list[InputSpec]) -> None:
    """By their texts, or the shape of a plain one; and so does a recipe that was written down."""
    named = [spec for spec in inputs if spec.name] or [spec for spec in inputs if not spec.name]
    kept = settled_inputs(list(map(str, named)))
    assert parse_inputs(kept) == tuple(named) and settled_inputs(kept) == kept
    recipe = make_recipe({"model": {"source": "a:b", "input": list(kept)}})
    assert make_recipe(recipe.model_dump(mode="json")) == recipe and recipe.model.input == kept


@pytest.mark.parametrize(
    ("written", "shape", "dtype", "name"),
    [
        ("3,224,224", (3, 224, 224), "float32", ""),
        ("3x224x224", (3, 224, 224), "float32", ""),
        ("3×16×112×112", (3, 16, 112, 112), "float32", ""),
        ("1024", (1024,), "float32", ""),
        (" 3, 8 , 8 ", (3, 8, 8), "float32", ""),
        ("(1024,)", (1024,), "float32", ""),
        ("[3, 8, 8]", (3, 8, 8), "float32", ""),
        ("128:int64", (128,), "int64", ""),
        ("128:torch.int64", (128,), "int64", ""),
        ("x=3,8,8", (3, 8, 8), "float32", "x"),
        ("t=scalar:int64", (), "int64", "t"),
        ("scalar", (), "float32", ""),
        ("mask=8x8:bool", (8, 8), "bool", "mask"),
    ],
)
def test_the_forms_of_an_input(written: str, shape: tuple[int, ...], dtype: str, name: str) -> None:
    assert parse_inputs([written]) == parse_inputs(written) == (InputSpec(shape, dtype, name),)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ([3, 224, 224], (3, 224, 224)),
        ((3, 224, 224), (3, 224, 224)),
        ("3,224,224", (3, 224, 224)),
        (1024, (1024,)),
        ([[3, 8, 8], [3, 8, 8]], ("3,8,8", "3,8,8")),
        (["1024", "5"], ("1024", "5")),
        ([[3, 8, 8], "7:int64"], ("3,8,8", "7:int64")),
        ({"x": [3, 8, 8], "t": "scalar:int64"}, ("x=3,8,8", "t=scalar:int64")),
        ({"x": 4}, ("x=4",)),
    ],
)
def test_the_forms_of_a_recipes_input(value: Any, kept: tuple[Any, ...]) -> None:
    assert make_recipe({"model": {"source": "a:b", "input": value}}).model.input == kept


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "'' are not"),
        ([], "[] is no shape"),
        ("3,,8", "whole numbers of 1 or more"),
        ("3,0,8", "whole numbers of 1 or more"),
        ("-3,8", "whole numbers of 1 or more"),
        ([3, -1, 8], "whole numbers of 1 or more"),
        ("3.5", "whole numbers of 1 or more"),
        ([3.5], "3.5 is no shape"),
        ([[]], "[] is no shape"),
        (True, "True is no shape"),
        ("big", "whole numbers of 1 or more"),
        ("3,8,8:float23", "'float23' is no dtype of an input. Did you mean 'float32'?"),
        ("3,8,8:int", "'int' is no dtype of an input. Did you mean"),
        ("my input=3,8", "'my input' is no name of an argument"),
        ("=3,8", "'' is no name of an argument"),
        (["x=3,8", "3,8"], "name all of them or none"),
        (["x=3,8", "x=3,8"], "two inputs have the name 'x'"),
        ({"x": None}, "None is no shape"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_grammar(value: Any, says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        make_recipe({"model": {"source": "a:b", "input": value}}, where="Recipe")
    text = str(refused.value)
    assert says in text and "[NAME=]SHAPE[:DTYPE], as in 3,224,224 or 1024 or tokens=128:int64" in text
    assert "\n" not in text and text.startswith("Recipe: model.input")


@given(
    st.lists(specs.filter(lambda spec: len(spec.shape) < 3), min_size=1, max_size=3, unique_by=lambda spec: spec.name)
)
def test_an_example_is_one_sample_of_what_was_asked_for(inputs: list[InputSpec]) -> None:
    names = {spec.name: spec for spec in inputs}
    named = tuple(spec for name, spec in names.items() if name) or tuple(inputs)
    small = tuple(InputSpec(tuple(size % 5 + 1 for size in spec.shape), spec.dtype, spec.name) for spec in named)
    example = example_of(small, 0)
    assert inputs_in(example) == small
    seen = call(Keeping(), example)
    assert [tensor.dtype for tensor in seen] == [getattr(torch, spec.dtype) for spec in small]
    assert all(len(tensor) == 1 for tensor in seen)


class Keeping(torch.nn.Module):
    """Gives what it is given."""

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> list[torch.Tensor]:
        return [*args, *kwargs.values()]


def test_the_example_of_one_image_has_the_bits_it_always_had() -> None:
    wanted = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(example_of((InputSpec((3, 8, 8)),), 5), wanted)


def test_whole_numbers_of_an_example_are_places_in_a_table() -> None:
    tokens, on = example_of(parse_inputs(["9:int64", "9:bool"]), 0)
    assert tokens.eq(1).all() and on.all()


def test_inputs_in_words() -> None:
    inputs = parse_inputs(["x=3,32,32", "t=scalar:int64"])
    assert described(inputs) == "x 3x32x32 and t scalar (int64)"

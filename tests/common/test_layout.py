"""common.interop.layout: one table, both directions, nothing lost on the way."""

import pytest
import torch
from torch import nn

from common.errors import EncoreError
from common.interop.layout import Also, Drop, Fused, Layout, Transposed, Unbatched

TABLE = Layout(
    [
        ("embeddings.word.", "words."),
        ("encoder.layer.*.output.dense.", "blocks.*.fc2."),
        ("encoder.layer.*.output.norm.", "blocks.*.norm."),
        Fused(tuple(f"encoder.layer.*.self.{part}." for part in ("query", "key", "value")), "blocks.*.qkv."),
        Transposed("projection", "proj.weight"),
        Unbatched("cls_token", "cls", leading=2),
        Also("decoder.weight", "words.weight"),
        Drop("pooler."),
        Drop("embeddings.position_ids"),
    ],
    spelled={"norm.gamma": "norm.weight"},
    base="bert.",
).under(theirs="bert.")
TABLE.base = "bert."


def theirs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "bert.embeddings.word.weight": (7, 4),
        "bert.projection": (4, 3),
        "bert.cls_token": (1, 1, 4),
    }
    for layer in range(12):  # two digits: 1 and 11 must not be taken for each other
        below = f"bert.encoder.layer.{layer}."
        shapes |= {f"{below}self.{part}.{kind}": (4, 4)[: 2 - (kind == "bias")]
                   for part in ("query", "key", "value") for kind in ("weight", "bias")}  # fmt: skip
        shapes |= {f"{below}output.dense.weight": (4, 8), f"{below}output.norm.weight": (4,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "bert.decoder.weight": state["bert.embeddings.word.weight"]}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_there_and_back_is_the_identity():
    state = theirs()
    assert equal(TABLE.to_theirs(TABLE.to_ours(state)), state)


def test_parts_are_fused_in_the_order_of_the_table_whatever_the_order_of_the_file():
    state = theirs()
    ours = TABLE.to_ours(dict(reversed(state.items())))
    below = "bert.encoder.layer.11.self."
    wanted = torch.cat([state[f"{below}{part}.weight"] for part in ("query", "key", "value")])
    assert torch.equal(ours["blocks.11.qkv.weight"], wanted)
    assert torch.equal(ours["proj.weight"], state["bert.projection"].T)
    assert ours["cls"].shape == (4,)


def test_what_they_have_beside_is_left_out_and_a_tied_copy_is_written_again():
    state = theirs() | {"bert.pooler.dense.weight": torch.ones(2), "bert.embeddings.position_ids": torch.arange(3)}
    ours = TABLE.to_ours(state)
    assert not any("pooler" in name or "position_ids" in name or "decoder" in name for name in ours)
    assert torch.equal(TABLE.to_theirs(ours)["bert.decoder.weight"], state["bert.embeddings.word.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_seen_through(prefix):
    state = theirs()
    assert equal(TABLE.to_ours({prefix + name: value for name, value in state.items()}), TABLE.to_ours(state))


def test_old_spellings_and_files_of_the_bare_model_are_read():
    state = theirs()
    old = {name.removeprefix("bert.").replace("norm.weight", "norm.gamma"): value for name, value in state.items()}
    assert equal(TABLE.to_ours(old), TABLE.to_ours(state))


def test_an_unknown_name_is_an_error_that_names_it():
    with pytest.raises(EncoreError, match=r"unknown bert\.encoder\.layer\.3\.output\.strange"):
        TABLE.to_ours(theirs() | {"bert.encoder.layer.3.output.strange": torch.ones(1)}, "file.bin")
    with pytest.raises(EncoreError, match="no name in the other layout for extra"):
        TABLE.to_theirs(TABLE.to_ours(theirs()) | {"extra": torch.ones(1)})


def test_a_missing_part_is_an_error_that_names_it():
    state = theirs()
    del state["bert.encoder.layer.5.self.key.bias"]
    with pytest.raises(EncoreError, match=r"file\.bin: missing bert\.encoder\.layer\.5\.self\.key\.bias"):
        TABLE.to_ours(state, "file.bin")


def test_two_tensors_for_one_of_ours_are_an_error():
    state = theirs()
    state["bert.encoder.layer.0.output.norm.gamma"] = torch.ones(4)
    with pytest.raises(EncoreError, match="two tensors are our"):
        TABLE.to_ours(state)


def test_a_name_that_says_more_wins_wherever_it_stands():
    rows = [("a.", "rest."), ("a.b.", "other."), ("a.b.weight", "exact")]
    state = {"a.b.weight": torch.zeros(1), "a.b.bias": torch.ones(1), "a.c": torch.full((1,), 2.0)}
    for table in (rows, rows[::-1]):
        assert list(Layout(table).to_ours(state)) == ["exact", "other.bias", "rest.c"]
        assert list(Layout(table).to_theirs(Layout(table).to_ours(state))) == list(state)


def test_a_file_is_loaded_and_saved_and_a_head_it_lacks_stays_fresh(tmp_path):
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    table = Layout([("encoder.", "body."), ("classifier.", "head.")])
    table.save(model, tmp_path, {"model_type": "toy"})
    other = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    table.load(other, tmp_path)
    assert equal(other.state_dict(), model.state_dict())
    from common.interop import save_weights

    save_weights(tmp_path, {f"encoder.{n}": torch.full_like(v, 3.0) for n, v in model["body"].state_dict().items()}, {})
    with pytest.raises(EncoreError, match="missing head"):
        table.load(other, tmp_path)
    before = other["head"].weight.clone()
    table.load(other, tmp_path, fresh=("head.",))
    assert torch.equal(other["head"].weight, before)
    assert (other["body"].weight == 3).all()

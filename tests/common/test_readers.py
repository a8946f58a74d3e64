"""Bad configurations and damaged checkpoints: one line each, whatever they hold."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import EncoreError
from common.interop.checkpoint import check_training_state
from common.plain_yaml import parse_mapping
from common.training.cli import main
from common.training.trainer import build_trainer
from tests.common.test_training_resume import CONFIG, Toy, ToyData

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abcdef -:#\n", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=5), plain))
def test_what_is_plain_data_is_read_as_any_reader_reads_it(content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content)
    try:
        assert parse_mapping(text, "c.yaml") == yaml.safe_load(text)
    except EncoreError as error:  # `yes: 1` and the like: a key that yaml takes for something else than text
        assert "must be text" in str(error)  # noqa: PT017


@settings(max_examples=300)
@given(st.text("ab01:-[]{}&*!?|>'\"#%@,\n \t.\x00\u2028~<", max_size=60))
def test_any_text_gives_a_mapping_or_one_line(text: str) -> None:
    try:
        assert isinstance(parse_mapping(text, "c.yaml"), dict)
    except EncoreError as error:
        assert str(error).startswith("c.yaml")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"c.yaml:3: .*'a' is given twice"),
        ("a: {b: 1, c: {b: 1}, b: 2}", "'b' is given twice"),
        ("a: &x 1\nb: *x", r"c.yaml:2: .*alias \*x"),
        ("a: " + "[" * 5000, "more than 50 levels"),
        ("- 1", "must be a mapping"),
        ("a: !!python/name:os.system x", "not valid yaml"),
    ],
)
def test_what_is_no_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(EncoreError, match=message):
        parse_mapping(text, "c.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_steps: 4", "max_steps: four", "trainer.max_steps"),
        ("max_steps: 4", "max_steps: -7", "max_steps"),
        ("max_steps: 4", "devices: 0", "devices"),
        ("max_steps: 4", "strategy: foo", "strategy"),
        ("max_steps: 4", "callbacks: [foo]", "trainer.callbacks"),
        ("accelerator: cpu", "accelerator: abacus", "abacus"),
        ("resume.Toy}", "resume.Nope}", "Nope"),
        ("resume.Toy}", "resume.Toy, init_args: {widht: 3}}", "widht"),
        ("resume.Toy}", "resume.Toy, init_args: {width: -1}}", "model or data"),
        ("num_batches: 100", "batch_size: 0", "batch_size must be at least 1"),
        ("seed_everything: 1", "seed_everything: 1\nmodell: 3", "modell"),
        ("seed_everything: 1", "seed_everything: 1\nseed_everything: 2", "given twice"),
        ("seed_everything: 1", "checkpoint_every: 0", "checkpoint_every"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["train"])
    assert old in CONFIG
    (tmp_path / "c.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path / "out")).replace(old, new))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(tmp_path / "c.yaml")])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert message in said[0]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    L.seed_everything(1, verbose=False)
    build_trainer(folder, max_steps=3, accelerator="cpu").fit(Toy(), datamodule=ToyData())
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_a_whole_checkpoint_passes(content: dict[str, Any]) -> None:
    check_training_state(content, "last.ckpt")


PARTS = ("state_dict", "global_step", "epoch", "callbacks", "loops", "optimizer_states", "lr_schedulers")


@settings(deadline=None)
@given(
    part=st.sampled_from(PARTS), value=st.text(max_size=3) | st.none() | st.floats() | st.just([1]) | st.just({1: 2})
)
def test_a_part_of_another_kind_passes_or_is_one_line(content: dict[str, Any], part: str, value: Any) -> None:
    wrong = not (value == [1] and part == "lr_schedulers") and not (value == {1: 2} and part == "callbacks")
    try:
        check_training_state({**content, part: value}, "last.ckpt")
    except EncoreError as error:
        assert str(error).startswith("last.ckpt: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert not wrong


def test_weights_that_are_not_finite_are_refused(content: dict[str, Any]) -> None:
    broken = content["state_dict"] | {"net.0.bias": torch.tensor([0, float("nan"), 0, 0])}
    with pytest.raises(EncoreError, match=r"net.0.bias.* is not finite"):
        check_training_state({**content, "state_dict": broken}, "last.ckpt")

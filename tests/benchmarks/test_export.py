"""`encore export`: what is written, and what is refused."""

import json
import os

import pytest
import torch
import yaml
from typer.testing import CliRunner

from benchmarks.paper import paths
from benchmarks.tools.export import export, exporting, paper_encoder
from common.errors import EncoreError
from common.interop.checkpoint import load_checkpoint
from common.interop.encoder import Encoder
from tests import exported


def changed(path, **parts):
    """The checkpoint with other parts; None takes a part away."""
    content = torch.load(path, weights_only=True) | parts
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    exported.pointer_networks(tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


def test_the_directory_says_where_the_model_came_from(checkpoint, tmp_path):
    out = export("pointer_networks", checkpoint, tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    block = json.loads((out / "config.json").read_text())["encore"]
    assert block == {
        "paper": "pointer_networks",
        "format": 1,
        "module": "papers.pointer_networks.module.PointerNetworks",
        "steps": 3,
        "checkpoint_sha256": load_checkpoint(checkpoint).sha256,
        "files": ["README.md", "config.json", "model.safetensors"],
    }
    card = (out / "README.md").read_text()
    for part in ("Pointer Networks", "1506.03134", "| steps | 3 |", "| seed | 11 |", block["checkpoint_sha256"]):
        assert part in card
    for part in ("papers.toy.data.Toy", "hidden_dim: 8", "Apache-2.0", "*wikitext2*", "CC BY-SA 3.0", "torch 2."):
        assert part in card
    assert "/somewhere/of" not in card  # folders of the machine it was trained on
    assert "folder: mine" in card
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", tmp_path / "run"]


def test_force_takes_away_nothing_that_the_export_did_not_write(checkpoint, tmp_path):
    out = export("pointer_networks", checkpoint, tmp_path / "out")
    (out / "notes.md").write_text("mine")
    with pytest.raises(EncoreError, match=r"notes\.md: is not of the export"):
        export("pointer_networks", checkpoint, out, force=True)
    assert (out / "notes.md").read_text() == "mine"
    (out / "notes.md").unlink()
    export("pointer_networks", checkpoint, out, force=True)


def test_the_card_names_the_weights_a_model_started_from_and_the_class_that_opens_it(tmp_path):
    exported.bart(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    config = yaml.safe_load(content["encore"]["config"])
    config["model"]["init_args"]["checkpoint"] = "/a/b/bart-base"
    changed(tmp_path / "last.ckpt", encore={"config": yaml.safe_dump(config)})
    card = (export("bart", tmp_path / "last.ckpt", tmp_path / "out") / "README.md").read_text()
    assert "started from | checkpoint: bart-base" in card
    assert "(bart-base): their own licence goes on applying" in card
    assert "transformers.BartForConditionalGeneration.from_pretrained" in card


def test_a_checkpoint_needs_its_configuration_where_the_module_keeps_none(tmp_path):
    path = tmp_path / "last.ckpt"
    model = exported.clip(path)
    config = yaml.safe_load(torch.load(path, weights_only=True)["encore"]["config"])
    changed(path, encore=None)
    with pytest.raises(EncoreError, match="--config"):
        export("clip", path, tmp_path / "out")
    other = tmp_path / "elsewhere.yaml"
    other.write_text(yaml.safe_dump(config))
    export("clip", path, tmp_path / "given", config=other)
    config["model"]["init_args"]["model"]["init_args"]["text"]["init_args"]["depth"] = 3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(EncoreError, match="missing text.blocks"):
        export("clip", path, tmp_path / "beside")
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(EncoreError, match=r"config\.yaml:\d+: not valid yaml"):
        export("clip", path, tmp_path / "broken")
    images = torch.randn(1, 3, 16, 16)
    pooled = Encoder.from_directory(tmp_path / "given").encode(images).pooled
    torch.testing.assert_close(pooled, model.encode_image(images))


NO_MODELS = ["os.system", "papers.clip.module.CLIPModule", "papers.clip.model.ViT", "papers.pre.model.clip_small", "x"]


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_configuration_can_build_nothing_but_models_of_the_paper(name, tmp_path):
    path = tmp_path / "last.ckpt"
    exported.clip(path)
    spec = {"model": {"class_path": name, "init_args": {"command": "touch harmed"}}}
    config = {"model": {"class_path": "papers.clip.module.CLIPModule", "init_args": spec}}
    with pytest.raises(EncoreError, match="is not in papers.clip.model"):
        export("clip", changed(path, encore={"config": yaml.safe_dump(config)}), tmp_path / "out")


def test_what_is_no_checkpoint_of_the_paper_is_one_line(checkpoint, tmp_path):
    cases = {"no such checkpoint": tmp_path / "nothing.ckpt", "not a readable checkpoint": tmp_path / "text.ckpt"}
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"weights": torch.ones(2)}, tmp_path / "weights.ckpt")
    (tmp_path / "hub").mkdir()
    cases[r'is a folder, .*from_directory\(".*hub", paper="pointer_networks"\)'] = tmp_path / "hub"
    cases["has no state_dict"] = tmp_path / "weights.ckpt"
    exported.bart(tmp_path / "bart.ckpt")
    cases["is a checkpoint of bart, not of pointer_networks"] = tmp_path / "bart.ckpt"
    for message, path in cases.items():
        with pytest.raises(EncoreError, match=message) as error:
            export("pointer_networks", path, tmp_path / "out")
        assert "\n" not in str(error.value)
    hyper = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    for message, arguments in {"other size": {"hidden_dim": 16}, "is no checkpoint of": {"hidden_dim": "x"}}.items():
        with pytest.raises(EncoreError, match=message):
            export("pointer_networks", changed(checkpoint, hyper_parameters=hyper | arguments), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_what_stands_in_the_way_is_kept(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export("pointer_networks", checkpoint, out)  # an empty folder is free
    before = (out / "README.md").read_text()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(EncoreError, match="--force"):
        export("pointer_networks", checkpoint, out)
    with pytest.raises(EncoreError):
        export("pointer_networks", tmp_path / "nothing.ckpt", out, force=True)
    assert (out / "README.md").read_text() == before
    with pytest.raises(EncoreError, match=r"mine\.txt: is not of the export"):
        export("pointer_networks", checkpoint, out, force=True)
    (out / "mine.txt").unlink()
    export("pointer_networks", checkpoint, out, force=True)
    other = tmp_path / "run"
    with pytest.raises(EncoreError, match="something else"):
        export("pointer_networks", checkpoint, other, force=True)
    with pytest.raises(EncoreError, match="no folder"):
        export("pointer_networks", checkpoint, checkpoint, force=True)
    assert sorted(tmp_path.iterdir()) == [out, other]


def test_an_earlier_export_comes_back_when_the_new_one_cannot_take_its_place(checkpoint, tmp_path, monkeypatch):
    out = export("pointer_networks", checkpoint, tmp_path / "out")
    rename = os.rename

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk"):
        export("pointer_networks", checkpoint, out, force=True)
    assert (out / "model.safetensors").is_file()
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "run"]


def test_a_model_that_the_format_cannot_hold_is_not_written(tmp_path):
    """The hub's config has no place for a position table that was interpolated from another grid."""
    from papers.videomae_v2.model import VideoClassifier

    sizes = {"dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8, "patch_size": 8, "num_classes": 2}
    sizes |= {"num_frames": 4, "image_size": 16, "pretrained_grid": [2, 1, 1]}
    arguments = {"model": exported.described("papers.videomae_v2.model.VideoClassifier", **sizes)}
    module, path = "papers.videomae_v2.module.FineTuning", tmp_path / "last.ckpt"
    exported.save_checkpoint(path, module, arguments, VideoClassifier(**sizes), "model.", hyper=False)
    with pytest.raises(EncoreError, match=r"model\.encoder\.positions would be lost"):
        export("videomae_v2", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_train_script_keeps_its_configuration_in_the_checkpoint(tmp_path):
    from common.training.cli import run

    options = {"max_steps": 2, "limit_val_batches": 0, "default_root_dir": tmp_path}
    arguments = [f"--trainer.{name}={value}" for name, value in options.items()]
    config = paths.room("pointer_networks") / "configs/smoke.yaml"
    run(["fit", f"--config={config}", *arguments, "--data.batch_size=4", "--data.val_sets=4", "--checkpoint_every=2"])
    (tmp_path / "config.yaml").unlink()
    kept = load_checkpoint(tmp_path / "last.ckpt").config
    assert kept["data"]["init_args"]["batch_size"] == 4
    out = export("pointer_networks", tmp_path / "last.ckpt", tmp_path / "out")
    assert "papers.pointer_networks.data.GeneratedProblems" in (out / "README.md").read_text()
    assert Encoder.from_directory(out).encode(torch.rand(2, 5, 2)).tokens.shape == (2, 5, 32)


def test_the_command_prints_the_folder_and_names_the_papers_that_export(checkpoint, tmp_path):
    from benchmarks.cli import app

    def encore(paper):
        command = ["export", paper, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, command)

    assert encore("pointer_networks").output == f"{tmp_path / 'out'}\n"
    assert "--force" in str(encore("pointer_networks").exception)
    assert isinstance(encore("clop").exception, EncoreError)
    assert {"clip", "bart", "videomae_v2", "beats", "pointer_networks"} <= set(exporting())
    with pytest.raises(EncoreError, match="these have: .*clip.*videomae_v2"):
        paper_encoder("nosuchpaper")

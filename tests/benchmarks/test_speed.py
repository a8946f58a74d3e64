"""What the speed figures rest on: equal sides, paired clocks, fitted exponents. No time is asserted."""

import importlib.util
import itertools
import json

import pytest
import torch

from benchmarks.speed import measure, ratios, results
from benchmarks.speed.__main__ import Setting, agree, keep, main, subject
from benchmarks.speed.pairs import pairs
from common.errors import EncoreError
from common.fast.in_backward import keep_freed_memory


@pytest.mark.parametrize("name", pairs())
def test_both_sides_are_the_same_model_and_learn_alike(name, tmp_path):
    if name == "vit-timm" and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: make setup EXTRAS=speed")
    theirs, ours = (subject(name, side, tmp_path, "small") for side in ("theirs", "ours"))
    assert ours.inference()() == pytest.approx(theirs.inference()(), abs=1e-5)
    losses = [[step() for _ in range(3)] for step in (ours.training_step(), theirs.training_step())]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    assert losses[0][2] != losses[0][0], "the weights must move"


def test_in_bfloat16_both_sides_still_agree(tmp_path):
    low = Setting(precision="bfloat16")
    theirs, ours = (subject("clip", side, tmp_path, "small", low) for side in ("theirs", "ours"))
    agree("clip", "losses", ours.training_step()(), theirs.training_step()(), low)
    exact = subject("clip", "ours", tmp_path, "small").training_step()()
    assert ours.training_step()() != exact, "the products must be rounded"


def test_a_gpu_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EncoreError, match="--device cuda"):
        Setting.chosen("cuda", None, compiled=False)
    assert Setting.chosen(None, None, compiled=False) == Setting()


def test_different_models_are_not_compared():
    agree("vit", "losses", 1.0, 1.001)
    with pytest.raises(EncoreError, match="vit: the losses differ"):
        agree("vit", "losses", 1.0, 1.01)


def test_a_ratio_above_one_means_that_ours_is_faster(monkeypatch):
    clock = itertools.count()
    now = {"time": 0.0}
    monkeypatch.setattr(measure, "perf_counter", lambda: now["time"])

    def step(seconds):
        def run():
            now["time"] += seconds * (1 + 0.1 * (next(clock) % 3))
            return 0.0

        return run

    found = measure.paired(step(1.0), step(2.0), rounds=6)
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(2, rel=0.2)
    assert found.theirs > found.ours


def test_cards_have_their_nominal_rate():
    assert measure.nominal_rate("NVIDIA H100 80GB HBM3") == 989e12
    assert measure.nominal_rate("unknown") is None


def test_the_exponent_has_its_closed_form():
    assert measure.exponent([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_new_figures_replace_those_of_the_same_pair_alone(tmp_path):
    def row(pair, size, compiled, ratio):
        return {
            "pair": pair,
            "size": size,
            "device": "cpu",
            "precision": "float32",
            "compiled": compiled,
            "ratio": ratio,
        }

    file = tmp_path / "speed.json"
    keep(file, rows=[row("vit", "base", False, 1), row("vit", "base", True, 2)], growth={"tokens": 1})
    keep(file, rows=[row("vit", "base", True, 3), row("clip", "base", False, 4)])
    assert json.loads(file.read_text()) == {
        "growth": {"tokens": 1},
        "rows": [row("vit", "base", False, 1), row("vit", "base", True, 3), row("clip", "base", False, 4)],
    }


def test_what_is_kept_is_what_the_report_reads(tmp_path, monkeypatch, capsys):
    def halved():
        """Half of the work."""
        return lambda: 0.0, lambda: 0.0

    def growth(rounds):
        """A step."""
        return {what: {"x": [1, 2], "seconds": [0.1, 0.2], "exponent": 1.0} for what in ("tokens", "width")}

    monkeypatch.setattr("benchmarks.speed.__main__.matmul_rate", lambda device, dtype: 1e10)
    monkeypatch.setattr("benchmarks.speed.__main__.peak_memory", lambda arguments: 1000 + len(arguments[1]))
    monkeypatch.setattr("benchmarks.speed.__main__.SHORTEST", 0.0)
    monkeypatch.setattr(ratios, "of_papers", lambda: {"half": halved})
    monkeypatch.setattr(ratios, "growth", growth)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    file = tmp_path / "results.json"
    options = ["--pairs", "vit", "--sizes", "small", "--rounds", "1", "--device", "cpu", "--json", str(file)]
    main(options)
    kept = results.read(file)
    (row,) = kept.rows
    assert (row.name, row.memory.ours, row.memory.theirs) == ("vit small (CPU, float32)", 1004, 1006)
    assert row.what.startswith("ViT-B/16 at 224 px")
    assert kept.ratios["half"].what == "Half of the work."
    assert (kept.growth.what, kept.growth.width.seconds) == ("A step.", [0.1, 0.2])
    assert "vit         small step" in capsys.readouterr().out
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    main([*options, "--compile", "--no-ratios"])
    kept = results.read(file)
    assert [(row.name, row.memory is None) for row in kept.rows] == [
        ("vit small (CPU, float32)", False),
        ("vit small (CPU, float32, compiled)", True),
    ]
    assert len(compiled) == 4, "loss and inference of both sides"
    assert "; memory" not in capsys.readouterr().out


def test_memory_is_spared_on_our_side_and_where_it_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert not subject("vit", "theirs", tmp_path, "small").in_backward
    assert subject("vit", "ours", tmp_path, "small").in_backward
    assert not subject("vit", "ours", tmp_path, "small", Setting(compiled=True)).in_backward


def test_a_damaged_file_is_refused_before_anything_is_measured(tmp_path):
    file = tmp_path / "results.json"
    file.write_text('{"rows": [{"pair"')
    for begin in (lambda: main(["--json", str(file)]), lambda: keep(file, growth={})):
        with pytest.raises(EncoreError, match=r"results\.json: not valid JSON"):
            begin()
    assert file.read_text() == '{"rows": [{"pair"'


def test_resident_memory_sees_a_tensor_that_is_already_gone():
    resident = measure.Resident()
    held = torch.ones(20_000_000)
    del held
    assert 70e6 < resident.growth() < 400e6


def test_what_was_freed_before_hides_no_growth():
    keep_freed_memory()
    for _ in range(2):
        resident = measure.Resident()
        held = [torch.ones(5_000_000) for _ in range(4)]
        del held
        assert resident.growth() > 70e6


def test_pairs_and_ratios_are_found_in_the_rooms_of_the_papers():
    assert list(pairs()) == ["vit", "vit-timm", "bert", "bart", "clip", "videomae_v2"]
    assert list(ratios.of_papers()) == ["dual masking", "visible tokens only"]

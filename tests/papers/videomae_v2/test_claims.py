"""VideoMAE V2: what its claims compare."""

from common.training.run import Run
from papers.videomae_v2 import claims


def test_arms_differ_in_the_decoder_mask_and_in_what_it_costs(tmp_path):
    runs = {arm: Run("videomae_v2", "claim", arm, 0, "smoke", tmp_path / arm) for arm in ("dual", "scratch")}
    found = {arm: claims.quality(run) for arm, run in runs.items()}
    assert claims.quality(runs["dual"]) == found["dual"], "a finished unit is loaded, not trained again"
    assert runs["dual"].record.settings == {"decoder": "running_cell"}
    fits = runs["dual"].record.fits
    assert fits["fine_tuning_0"]["handed_over"] == fits["fine_tuning_1"]["handed_over"] is not None
    assert fits["pretraining"]["data"] == "train:unlabelled"
    assert runs["scratch"].record.fits.keys() == {"fine_tuning_0", "fine_tuning_1"}
    assert not runs["scratch"].record.fits["fine_tuning_0"]["handed_over"]
    assert "clip_gflops" not in found["scratch"]


def test_decoding_half_of_the_cubes_saves_memory_and_work(tmp_path):
    found = claims.cost(Run("videomae_v2", "claim", "dual", 0, "smoke", tmp_path))
    assert found["memory_ratio"] > 1.2
    assert found["gflops_ratio"] > 1.2
    assert found["speedup"] > 0

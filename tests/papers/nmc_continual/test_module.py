"""Learners along a stream: exact resume, what moves and what does not, baselines' objectives, configs."""

import csv
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector

from common.errors import EncoreError
from common.training.cli import run as train
from common.training.recipe import Optim
from papers.nmc_continual import fixtures, module, pretraining, streams
from papers.nmc_continual.baselines import EWC, FineTuning, LinearHead, ScaleAndShift
from papers.nmc_continual.data import StreamData, TensorImages
from papers.nmc_continual.model import NearestMean, Precomputed, SmallResNet
from papers.nmc_continual.module import NMC
from tests import tiny
from tests.helpers import assert_resumes_exactly, train_steps

CONFIGS = Path(module.__file__).parent / "configs"
SIZES = {"num_classes": 4, "num_tasks": 2}


class Toy(StreamData):
    """Two tasks of two classes, 8x8 pictures with a bright quarter: (12, 6) images, so 4 + 2 batches, by default."""

    def __init__(self, sizes: tuple[int, int] = (12, 6), order=(0, 1, 2, 3), noise: float = 0.8, **stream) -> None:
        super().__init__(**{"batch_size": 3, "eval_batch_size": 40} | stream)
        self.sizes, self.order, self.noise = sizes, order, noise

    def load(self):
        generator = torch.Generator().manual_seed(0)

        def draw(labels: np.ndarray) -> TensorImages:
            images = self.noise * torch.randn(len(labels), 1, 8, 8, generator=generator)
            for image, label in zip(images, labels):
                image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 1.0
            return TensorImages(images, labels)

        train_labels = np.repeat([0, 1, 2, 3], np.repeat(self.sizes, 2) // 2)
        test_labels = np.repeat([0, 1, 2, 3], 10)
        return (
            draw(train_labels),
            draw(test_labels),
            streams.class_incremental(train_labels, test_labels, self.order, 2),
        )


def encoder() -> SmallResNet:
    torch.manual_seed(3)
    return SmallResNet((8, 16), image_size=8, feature_dim=16)


def nmc() -> NMC:
    return NMC(encoder(), **SIZES)


def ewc() -> EWC:
    return EWC(encoder(), optim=Optim(lr=1e-2), beta=5.0, fisher_images=4, **SIZES)


def scale_and_shift() -> ScaleAndShift:
    return ScaleAndShift(encoder(), optim=Optim(lr=1e-2), own_task_only=True, **SIZES)


@pytest.mark.parametrize("make", [nmc, ewc, scale_and_shift])
@pytest.mark.parametrize("sizes", [(12, 6), (9, 9)])  # the checkpoint lies within the first task, or at its end
def test_a_stopped_stream_ends_as_if_it_had_not_been_stopped(make, sizes, tmp_path):
    assert_resumes_exactly(make, lambda: Toy(sizes), tmp_path)


def follow(learner, data, folder):
    data.setup()
    learner, losses = train_steps(lambda: learner, lambda: data, folder, len(data.batches()))
    return learner, losses, learner.results(data.stream)


# The paper's learner


def test_the_streaming_pass_gives_the_class_means_of_the_whole_training_set_and_trains_nothing(tmp_path):
    data, learner = Toy(), nmc()
    before = {name: p.clone() for name, p in learner.named_parameters()}
    learner, losses, results = follow(learner, data, tmp_path)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in learner.named_parameters())
    assert not any(p.requires_grad for p in learner.parameters())
    assert not learner.train().backbone.training
    with torch.no_grad():
        features = encoder().eval()(data.train_set.images)
        tests = encoder().eval()(data.test_set.images)
    labels, expected = torch.from_numpy(data.train_set.labels), torch.from_numpy(data.test_set.labels)
    whole = NearestMean(16, 4)
    whole.update(features, labels)
    torch.testing.assert_close(learner.classifier.means, whole.means, atol=1e-6, rtol=0)
    assert learner.classifier.counts.tolist() == [6, 6, 3, 3]
    hits = (whole.scores(tests).argmax(1) == expected).double()
    assert results["final_accuracy"] == pytest.approx(100 * hits.mean().item())
    first = NearestMean(16, 4)
    first.update(features[labels < 2], labels[labels < 2])
    early = (first.scores(tests[expected < 2]).argmax(1) == expected[expected < 2]).double().mean().item()
    assert results["average_incremental_accuracy"] == pytest.approx(50 * (early + hits.mean().item()))
    assert results["forgetting"] == pytest.approx(100 * (early - hits[expected < 2].mean().item()))
    assert losses[0] > 0


def test_accuracy_within_a_tasks_own_classes_never_changes_for_class_means_and_does_for_fine_tuning(tmp_path):
    _, _, frozen = follow(nmc(), Toy(), tmp_path / "nmc")
    assert frozen["restricted_drift"] == 0
    assert frozen["restricted_accuracy"] >= frozen["final_accuracy"]
    tuned = FineTuning(encoder(), optim=Optim(lr=3e-2), **SIZES)
    _, _, results = follow(tuned, Toy(epochs=4, noise=2.0), tmp_path / "tuned")
    assert results["restricted_drift"] > 0
    assert results["forgetting"] > 10  # the second task's classes take over


def test_the_order_of_classes_and_the_size_of_batches_leave_the_final_accuracy_as_it_is(tmp_path):
    found = []
    for number, (order, size, seed) in enumerate([((0, 1, 2, 3), 3, 0), ((3, 0, 2, 1), 3, 5), ((2, 1, 0, 3), 7, 1)]):
        learner, _, results = follow(nmc(), Toy(order=order, batch_size=size, seed=seed), tmp_path / str(number))
        found.append((results["final_accuracy"], learner.classifier.counts.tolist()))
    assert found[0] == found[1] == found[2]


def test_a_test_image_passes_the_frozen_encoder_once(tmp_path):
    learner, seen = nmc(), []
    learner.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    follow(learner, Toy(), tmp_path)
    assert sum(seen) == 18 + 40
    assert learner.tested.sum(1).tolist() == [20, 40]


def test_a_stream_that_does_not_fit_the_model_or_the_trainer_is_refused(tmp_path):
    with pytest.raises(EncoreError, match="the stream has 2 tasks and 4 classes, the model was built for 5 and 4"):
        train_steps(lambda: NMC(encoder(), num_classes=4, num_tasks=5), Toy, tmp_path, 1)
    with pytest.raises(EncoreError, match=r"set trainer\.max_epochs to 1"):
        train_steps(nmc, Toy, tmp_path, -1)


# Baselines


def attached(learner, data):
    """As if in a trainer: the learner can see the stream, and logs nowhere."""
    data.setup()
    learner.trainer = SimpleNamespace(datamodule=data, optimizers=[])
    learner.log = lambda *args, **kwargs: None
    return learner


def features_stream() -> Toy:
    """The toy stream of flattened pictures, for linear models."""
    data = Toy((40, 40))
    data.setup()
    for part in (data.train_set, data.test_set):
        part.images = part.images.flatten(1)
    return data


def test_masked_rows_train_exactly_like_a_head_that_grows(tmp_path):
    torch.manual_seed(0)
    learner = LinearHead(Precomputed(64), optim=Optim(lr=1e-2), **SIZES)
    start = {name: p.detach().clone() for name, p in learner.head.named_parameters()}
    data = features_stream()
    learner, losses, _ = follow(learner, data, tmp_path)
    grown: list[nn.Parameter] = []
    by_hand = []
    for position, *indices in data.batches():
        x = torch.stack([data.train_set[i]["image"] for i in indices])
        y = torch.tensor([data.train_set[i]["label"] for i in indices])
        if len(grown) == 2 * data.batches().task_at(position):  # two rows more, and a new optimizer for all
            rows = slice(len(grown), len(grown) + 2)
            grown += [nn.Parameter(start["weight"][rows].clone()), nn.Parameter(start["bias"][rows].clone())]
            optimizer = torch.optim.Adam(grown, lr=1e-2)
        loss = F.cross_entropy(x @ torch.cat(grown[::2]).T + torch.cat(grown[1::2]), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        by_hand.append(loss.item())
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)
    torch.testing.assert_close(learner.head.weight.detach(), torch.cat(grown[::2]).detach(), atol=1e-5, rtol=1e-4)


def test_the_loss_is_over_seen_classes_or_over_those_of_the_current_task():
    data = features_stream()
    batch = {"image": data.train_set.images[-5:], "label": torch.tensor([2, 3, 2, 3, 3])}
    for own, columns in ((False, [0, 2, 3]), (True, [2, 3])):
        torch.manual_seed(0)
        learner = attached(LinearHead(Precomputed(64), optim=Optim(lr=1e-3), own_task_only=own, **SIZES), data)
        learner.seen[0] = True
        logits = learner.head(batch["image"])[:, columns]
        expected = F.cross_entropy(logits, torch.tensor([columns.index(int(c)) for c in batch["label"]]))
        torch.testing.assert_close(learner.learn(batch), expected)
        assert learner.seen.tolist() == [True, False, True, True]
        assert torch.isneginf(learner.scores(batch["image"])[:, 1]).all()


def test_only_head_and_adapters_move_over_a_frozen_encoder(tmp_path):
    learner = scale_and_shift()
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    follow(learner, Toy(epochs=2), tmp_path)
    moved = {name.split(".")[0] for name, p in learner.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head", "adapted"}
    assert all(torch.equal(p, before[f"backbone.{name}"]) for name, p in learner.backbone.named_parameters())


def test_fisher_information_of_a_linear_head_is_the_closed_form():
    data = features_stream()
    torch.manual_seed(0)
    learner = attached(EWC(Precomputed(64), optim=Optim(lr=1e-3), fisher_images=10, **SIZES), data)
    learner.seen[:] = True
    images = data.train_set.images[:2000:2]
    found = learner.fisher_information(images, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    p = learner.head(images).softmax(dim=1).detach()
    drawn = torch.cat([torch.multinomial(row, 1, generator=generator) for row in p])
    residual = F.one_hot(drawn, 4) - p
    weight = torch.einsum("bc,bd->cd", residual.square(), images.square()) / len(images)
    expected = torch.cat([weight.flatten(), residual.square().mean(0)])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    mean_gradient = torch.einsum("bc,bd->cd", residual, images) / len(images)
    assert found[:256].sum() > 5 * mean_gradient.square().sum()
    expectation = (p * (1 - p)).mean(0)  # of the squared residual under the model's own labels
    many = torch.stack([learner.fisher_information(images, torch.Generator().manual_seed(s)) for s in range(2, 12)])
    torch.testing.assert_close(many.mean(0)[256:], expectation, atol=0.03, rtol=0)


def test_the_penalty_holds_weights_to_the_last_tasks_by_the_summed_fisher_information():
    data = features_stream()
    torch.manual_seed(0)
    learner = attached(EWC(Precomputed(64), optim=Optim(lr=1e-3), beta=3.0, fisher_images=8, **SIZES), data)
    learner.seen[:2] = True
    assert learner.penalty() == 0
    learner.consolidate(0)
    first, anchor = learner.fisher.clone(), parameters_to_vector(learner.parameters()).detach()
    assert torch.equal(learner.anchor, anchor)
    assert learner.penalty() == 0
    with torch.no_grad():
        learner.head.weight.add_(0.1 * torch.randn(4, 64))
    moved = parameters_to_vector(learner.parameters()).detach() - anchor
    torch.testing.assert_close(learner.penalty(), 1.5 * (first * moved**2).sum())
    gradient = torch.autograd.grad(learner.penalty(), learner.head.weight)[0]
    torch.testing.assert_close(gradient.flatten(), 3.0 * (first * moved)[:256])
    learner.seen[:] = True
    learner.consolidate(1)
    assert (learner.fisher >= first).all()
    assert (learner.fisher > first).any()
    assert torch.equal(learner.anchor, parameters_to_vector(learner.parameters()))
    images = torch.cat([batch["image"] for batch in data.sample_loader(1, 8)])
    second = learner.fisher_information(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(learner.fisher, first + second)
    batch = {"image": data.train_set.images[:4], "label": torch.tensor([0, 1, 0, 1])}
    with torch.no_grad():
        learner.head.weight.mul_(1.1)
    plain = FineTuning.learn(learner, batch)
    torch.testing.assert_close(learner.learn(batch), plain + learner.penalty())
    assert learner.penalty() > 0


def test_a_strong_penalty_keeps_what_the_first_task_needs_and_none_does_not(tmp_path):
    moved = {}
    for beta in (0.0, 1e4):
        learner, ends = EWC(encoder(), optim=Optim(lr=3e-3), beta=beta, fisher_images=8, **SIZES), []
        learner.evaluate = lambda task, own=learner, to=ends: to.append((own.anchor.clone(), own.fisher.clone()))
        data = Toy((12, 12), epochs=3)
        data.setup()
        train_steps(lambda made=learner: made, lambda found=data: found, tmp_path / str(beta), len(data.batches()))
        (start, fisher), (end, _) = ends
        moved[beta] = (fisher * (end - start).square()).sum().item()
    assert 0 < moved[1e4] < 0.5 * moved[0.0]


def test_the_joint_stream_is_one_task_with_everything(tmp_path):
    data = Toy(joint=True, epochs=2)
    learner = FineTuning(encoder(), num_classes=4, num_tasks=1, optim=Optim(lr=1e-2))
    _, losses, results = follow(learner, data, tmp_path)
    assert len(losses) == 2 * 6
    assert results["forgetting"] == 0
    assert results["final_accuracy"] == results["average_incremental_accuracy"]


# Configs


def test_the_smoke_config_learns_each_of_its_tasks(tmp_path):
    trained = train(["fit", "--config", str(CONFIGS / "smoke.yaml"), "--trainer.default_root_dir", str(tmp_path)])
    data = trained.datamodule
    ends = data.batches().ends.tolist()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == ends[-1]
    for first, last in zip([0, *ends], ends):
        assert np.mean(losses[last - 3 : last]) < np.mean(losses[first : first + 3])
    tested = [row for row in rows if row.get("stream/accuracy") and int(row["step"]) + 1 in ends]  # it stays in the log
    accuracies = [float(row["stream/accuracy"]) for row in tested]
    assert len(accuracies) == 5
    metrics = trained.trainer.callback_metrics
    assert metrics["stream/average_incremental_accuracy"].item() == pytest.approx(np.mean(accuracies), abs=1e-3)


def test_the_streaming_pass_starts_from_its_config_and_from_a_pretrained_encoder(tmp_path):
    folder = ["--trainer.default_root_dir", str(tmp_path / "run")]
    trained = train(["fit", "--config", str(CONFIGS / "smoke_nmc.yaml"), *folder])
    assert trained.trainer.callback_metrics["stream/final_accuracy"] > 30  # ten classes, random features
    assert trained.trainer.callback_metrics["stream/restricted_drift"] == 0
    torch.manual_seed(0)
    made = pretraining.Pretraining(SmallResNet(), num_classes=5, optim=Optim(lr=1e-3))
    torch.save({"state_dict": made.state_dict()}, tmp_path / "last.ckpt")
    loaded = pretraining.from_checkpoint(str(tmp_path / "last.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.backbone.parameters()))
    torch.save({"state_dict": nmc().state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(EncoreError, match="weights do not fit SmallResNet"):
        pretraining.from_checkpoint(str(tmp_path / "other.ckpt"))


def test_pretraining_learns_and_its_rate_follows_a_cosine(tmp_path):
    torch.manual_seed(0)
    optim = Optim(lr=1e-2, schedule="cosine", warmup=2, total=20)
    learner = pretraining.Pretraining(encoder(), num_classes=4, optim=optim)
    data = Toy((30, 30), joint=True, epochs=1, batch_size=10)
    data.setup()

    class Epochs(Toy):
        def train_dataloader(self):
            from common.training.loaders import train_loader

            return train_loader(self.train_set, 10, seed=0, trainer=self.trainer)

    _, losses = train_steps(lambda: learner, lambda: Epochs((30, 30)), tmp_path, 20)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3
    assert learner.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)


STREAMED = ("cifar100", "cifar100_normalised", "core50", "imagenet_r", "five_datasets")


@pytest.mark.parametrize("name", STREAMED)
def test_a_published_stream_runs_to_its_end_on_small_sets(name, tmp_path):
    write = next(write for pattern, write in fixtures.FIXTURES.items() if fnmatch(f"paper_{name}.yaml", pattern))
    options = write(tmp_path) | {"trainer.accelerator": "cpu", "data.init_args.num_workers": 0}
    trained = tiny.train(CONFIGS / f"paper_{name}.yaml", options, tmp_path / "run")
    metrics = trained.trainer.callback_metrics
    assert 0 <= metrics["stream/final_accuracy"] <= 100
    assert (trained.model.tested.sum(1) > 0).all()
    assert metrics["stream/restricted_drift"] == 0
    assert trained.model.classifier.counts.sum() == len(trained.datamodule.train_set)

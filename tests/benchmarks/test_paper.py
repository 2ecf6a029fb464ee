"""The comparison with the paper: alike for every method, chosen on validation alone, and going on where it stopped."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks.paper import __main__ as paper_main
from benchmarks.paper import plan, recipes, tasks
from benchmarks.paper.__main__ import main
from benchmarks.paper.baselines import LORA_RANK, Adapted, BaselineGroup, GateVpt, adapt
from benchmarks.paper.drawing import chart
from benchmarks.paper.plan import SEARCH_RANGES, Baseline, Configuration, Size, Suite
from benchmarks.paper.records import Record, Records, key_of
from benchmarks.paper.report import UNWRITTEN, write_page
from benchmarks.paper.runner import Runner, Step, Task, steps
from bpt_core import samples, vit
from bpt_core.backbones import Backbone, freeze
from bpt_core.catalog import CATALOG, Pooling
from bpt_core.compute import Compute
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import InvalidSetting
from bpt_core.methods import Depth, Method
from bpt_core.recipe import Recipe
from bpt_core.views import SplitImages
from tests.core.conftest import write_flowers

TINY = Size(epochs=1, batch_size=8, warmup_epochs=0, head_fit_epochs=1, views=1, trials=2, widenings=0, seeds=2)
BILINEAR = Configuration("bpt-bilinear shallow", Method.BPT_BILINEAR, settings={"prompts": 4, "rank": 2})
PROBE = Configuration("linear-probe", Method.LINEAR_PROBE, settings={"epochs": 2, "views": 1, "warmup_epochs": 0})
VIT_B = CATALOG["vit_base_patch16_224.mae"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0)
    with torch.no_grad():
        for weight in model.blocks.parameters():
            weight.mul_(5 if weight.ndim == 2 else 1)
    return freeze(model, "tiny", pooling=Pooling.MEAN_ALL)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_flowers(tmp_path_factory.mktemp("flowers"), classes=2, train=6, val=4, test=4)


@pytest.fixture
def task(flowers: PackedDataset, backbone: Backbone) -> Task:
    return Task("flowers", flowers, backbone.image_size)


@pytest.fixture
def images(backbone: Backbone) -> Tensor:
    size = backbone.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def make_runner(backbone: Backbone, path: Path, size: Size = TINY, *rows: Configuration, **more: Any) -> Runner:
    return Runner(backbone, size, rows or (BILINEAR, PROBE), Records(path), **more)


def test_every_configuration_is_tried_at_the_same_places_of_its_ranges() -> None:
    rows = [each for suite in plan.suites(VIT_B).values() for each in suite.configurations]

    def places(row: Configuration) -> list[list[float]]:
        found = []
        for draw in row.draws(12):
            ranges = [row.search_range(setting) for setting in draw]
            zipped = zip(draw.values(), ranges, strict=True)
            found.append([math.log(value / low) / math.log(high / low) for value, (low, high) in zipped])
        return found

    first = places(rows[0])
    assert all(torch.allclose(torch.tensor(places(row)), torch.tensor(first)) for row in rows)
    for column in zip(*first, strict=True):  # one in every twelfth
        assert sorted(int(12 * place) for place in column) == list(range(12))


def test_rows_have_names_of_their_own_and_vary_rows_that_exist() -> None:
    for shape in CATALOG.values():
        rows = [each for suite in plan.suites(shape).values() for each in suite.configurations]
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)
        assert {row.like for row in rows} <= {"", *names}
        assert not any(row.like for row in rows if row.name in {other.like for other in rows})
        for row in rows:
            row.recipe(shape, plan.CUT, 1, row.draws(2)[0])


def test_prompts_are_the_papers_on_its_backbone() -> None:
    rows = {row.name: row.recipe(VIT_B, plan.FULL, 1, {}) for row in plan.METHODS.configurations}
    shallow, deep = rows["bpt-bilinear shallow"], rows["bpt-bilinear deep"]
    assert (shallow.prompts, shallow.rank, shallow.epochs) == (98, 73, 100)
    assert (deep.prompts, deep.rank) == (49, 49)
    assert rows["vpt shallow"].prompts == shallow.prompts
    assert rows["linear-probe"].prompts == 0


@pytest.mark.parametrize(("best", "expected"), [(0.01, 0.001), (0.1, None), (1.0, 10.0)])
def test_a_best_rate_at_the_edge_is_followed_outwards(best: float, expected: float | None) -> None:
    tried = [{"learning_rate": rate, "weight_decay": 1e-3} for rate in (0.01, 0.1, 1.0)]
    chosen = next(each for each in tried if each["learning_rate"] == best)
    wider = BILINEAR.wider(tried, chosen, 3)
    assert wider == ({} if expected is None else {"learning_rate": pytest.approx(expected), "weight_decay": 1e-3})


def test_all_rows_come_once_on_every_task_before_any_has_a_second_seed(task: Task) -> None:
    other = Task("other", task._dataset, 32)
    suites = (Suite("first", (PROBE, BILINEAR)), Suite("second", (PROBE,), tasks=1))
    order = [(step.task.name, step.configuration.name, step.seed) for step in steps(suites, [task, other], 2)]
    rows = [(name, row.name) for name in ("flowers", "other") for row in (PROBE, BILINEAR)]
    assert order == [
        *((*row, 1) for row in rows),
        *((*row, 2) for row in rows),
        ("flowers", PROBE.name, 1),
        ("flowers", PROBE.name, 2),
    ]


def test_a_comparison_goes_on_where_it_stopped(
    backbone: Backbone, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Recipe] = []
    train = Runner._train

    def counted(self: Runner, task: Task, row: Configuration, some: list[Recipe], *, tested: bool) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.extend(some)
        return train(self, task, row, some, tested=tested)

    monkeypatch.setattr(Runner, "_train", counted)
    step, path = Step(task, BILINEAR, 1), tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        make_runner(backbone, path).run(step)  # both trials of the search, and then the test
    with path.open("a") as file:
        file.write('{"key": "cut of')  # as a line that was being written when the power went
    trained.clear()
    record = make_runner(backbone, path).run(step)
    assert [recipe.seed for recipe in trained] == [1]
    assert record.test is not None
    assert make_runner(backbone, path).run(step) == record
    assert len(trained) == 1
    assert len(path.read_text().splitlines()) == 3


def test_a_search_never_reads_the_test_split_and_a_test_reads_it_once(
    backbone: Backbone, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[SplitImages] = []
    plain = SplitImages.evaluation_batches

    def watched(self: SplitImages, *arguments: Any) -> Iterator[Tensor]:
        read.append(self)
        return plain(self, *arguments)

    monkeypatch.setattr(SplitImages, "evaluation_batches", watched)
    made = make_runner(backbone, tmp_path / "runs.jsonl")
    for row in (BILINEAR, PROBE):
        read.clear()
        made.found(task, row)
        assert read
        assert "test" not in vars(task) or task.test not in read
        made.run(Step(task, row, 1))
        assert read.count(task.test) == 1


def test_the_best_on_validation_is_chosen_whatever_it_is_on_test(
    backbone: Backbone, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.4])

    def scored(self: Runner, task: Task, row: Configuration, some: list[Recipe], *, tested: bool) -> Any:
        val = next(scores)
        facts = {"parameters": 0, "seconds": 0.0, "machine": "", "val": val, "test": 1 - val}
        return [{"recipe": recipe.to_dict(), **facts} for recipe in some]

    monkeypatch.setattr(Runner, "_train", scored)
    made = make_runner(backbone, tmp_path / "runs.jsonl", replace(TINY, trials=3))
    assert made.found(task, BILINEAR) == BILINEAR.draws(3)[1]


def test_a_row_that_varies_another_takes_its_hyperparameters(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    varied = replace(BILINEAR, name="varied", like=BILINEAR.name, settings={"prompts": 2, "rank": 1})
    made = make_runner(backbone, tmp_path / "runs.jsonl", TINY, BILINEAR, varied)
    first, second = (made.run(Step(task, row, 1)) for row in (BILINEAR, varied))
    assert all(first.recipe[setting] == second.recipe[setting] for setting in SEARCH_RANGES)
    assert (second.recipe["prompts"], first.recipe["prompts"]) == (2, 4)
    assert [record.configuration for record in made.records.all()] == [BILINEAR.name] * 3 + ["varied"]


def test_trials_side_by_side_come_to_what_they_come_to_alone(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    together = make_runner(backbone, tmp_path / "a.jsonl", side_by_side=2)
    alone = make_runner(backbone, tmp_path / "b.jsonl")
    assert together.found(task, BILINEAR) == alone.found(task, BILINEAR)
    assert [record.key for record in together.records.all()] == [record.key for record in alone.records.all()]


def test_without_a_search_the_last_epoch_is_what_counts(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    row = replace(BILINEAR, settings={**(BILINEAR.settings or {}), "epochs": 3, "head_fit_epochs": 0})
    made = make_runner(backbone, tmp_path / "runs.jsonl", TINY, row, is_searched=False)
    record = made.run(Step(task, row, 1))
    assert record.curve[0] == -1  # nothing was judged before the first epoch
    assert (record.test, record.val) == (record.curve[-1], max(record.curve))
    assert len(made.records) == 1


def test_a_key_tells_every_difference_that_decides_a_run() -> None:
    recipe = Recipe(Method.VPT, prompts=2)
    same: dict[str, Any] = {"task": "a", "data": "b", "backbone": "c", "configuration": "d", "baseline": None}
    first = key_of(**same, recipe=recipe, tested=False)
    assert first == key_of(**same, recipe=replace(recipe), tested=False)
    others = [key_of(**same, recipe=recipe, tested=True), key_of(**same, recipe=replace(recipe, seed=1), tested=False)]
    others += [key_of(**{**same, name: "x"}, recipe=recipe, tested=False) for name in same]
    assert len({first, *others}) == 8


@pytest.mark.parametrize("baseline", list(Baseline))
def test_baselines_train_what_their_papers_count(baseline: Baseline, backbone: Backbone) -> None:
    d, blocks, prompts = backbone.embed_dim, backbone.depth, 4
    adapted = adapt(baseline, backbone, Pooling.MEAN_ALL, prompts, torch.Generator())
    expected = {
        Baseline.FULL: sum(each.numel() for each in backbone.model.parameters()),
        Baseline.LORA: blocks * LORA_RANK * (d + 3 * d),
        Baseline.SSF: 2 * d * (11 * blocks + 2),
        Baseline.GATE_VPT: prompts * d + (blocks - 1) + blocks,
    }
    assert sum(each.numel() for each in adapted.parameters()) == expected[baseline]
    assert all(each.requires_grad for each in adapted.parameters())


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN_ALL, Pooling.MEAN_PATCHES])
@pytest.mark.parametrize("baseline", [Baseline.FULL, Baseline.LORA, Baseline.SSF])
def test_what_adapts_the_backbone_starts_as_the_backbone(
    baseline: Baseline, pooling: Pooling, backbone: Backbone, images: Tensor
) -> None:
    adapted = adapt(baseline, backbone, pooling, 0, torch.Generator())
    plain = vit.features(backbone, images, pooling=pooling)
    assert torch.allclose(adapted.features(backbone, images), plain, atol=1e-5)


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN_ALL, Pooling.MEAN_PATCHES])
def test_gate_vpt_with_open_gates_is_vpt_and_with_shut_ones_is_not(
    pooling: Pooling, backbone: Backbone, images: Tensor
) -> None:
    adapted = GateVpt(backbone, pooling, 4, torch.Generator().manual_seed(3))
    with torch.no_grad():
        adapted.P.mul_(10)
        vpt = vit.features(backbone, images, adapted.P.detach(), Depth.SHALLOW, pooling)
        shut = adapted.features(backbone, images)
        adapted.gates.fill_(40)
        opened = adapted.features(backbone, images)
        adapted.temperatures.fill_(3)
        warm = adapted.features(backbone, images)
    assert torch.allclose(opened, vpt, atol=1e-5)
    assert not torch.allclose(shut, vpt, atol=1e-2)
    assert not torch.allclose(warm, vpt, atol=1e-2)


def test_temperatures_stay_in_their_range(backbone: Backbone, images: Tensor) -> None:
    adapted = GateVpt(backbone, Pooling.CLS, 2, torch.Generator())
    with torch.no_grad():
        adapted.temperatures.copy_(torch.tensor([-1.0, 1.0, 99.0]))
    adapted.features(backbone, images)
    assert adapted.temperatures.tolist() == pytest.approx([0.01, 1, 10])


@pytest.mark.parametrize("baseline", list(Baseline))
def test_a_baseline_learns_and_leaves_the_shared_backbone_alone(
    baseline: Baseline, backbone: Backbone, task: Task, tmp_path: Path
) -> None:
    weights = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    settings = {"prompts": 2, "learning_rate": 1e-2, "weight_decay": 0.0}
    row = Configuration(str(baseline), Method.VPT, baseline=baseline, settings=settings)
    group = BaselineGroup(baseline, backbone, task.images, [row.recipe(backbone, TINY, 1, {})], Compute())
    (trial,) = group.trials
    assert isinstance(trial.prompts, Adapted)
    before = [each.detach().clone() for each in trial.prompts.parameters()]
    group.fit_heads()
    assert all(torch.equal(each, was) for each, was in zip(trial.prompts.parameters(), before, strict=True))
    group.one_epoch()
    frozen = {id(each) for each in trial.prompts.model.parameters()} - {id(each) for each in trial.prompts.parameters()}
    assert all(each.grad is None for each in trial.prompts.model.parameters() if id(each) in frozen)
    assert bool(frozen) == (baseline is not Baseline.FULL)
    changed = [not torch.equal(each, was) for each, was in zip(trial.prompts.parameters(), before, strict=True)]
    # A position that cls pooling alone would read, and factors whose partner begins as zero, may stay.
    assert sum(changed) >= len(changed) / 2
    assert all(torch.equal(value, weights[name]) for name, value in backbone.model.state_dict().items())
    record = make_runner(backbone, tmp_path / "runs.jsonl", TINY, row).run(Step(task, row, 1))
    assert record.test is not None
    assert record.burstiness == {}


def test_a_cut_holds_a_smaller_cut_and_only_what_the_dataset_has(tmp_path: Path, flowers: PackedDataset) -> None:
    def paths(size: Size) -> dict[Split, set[str]]:
        items = list(tasks._cut(flowers, size))
        return {split: {item.path for item in items if item.split is split} for split in Split}

    small, large = paths(Size(train=2, val=1, test=2)), paths(Size(train=4, val=1))
    assert {split: len(each) for split, each in small.items()} == {Split.TRAIN: 4, Split.VAL: 2, Split.TEST: 4}
    assert all(small[split] <= large[split] for split in Split)
    assert len(large[Split.TEST]) == flowers.images(Split.TEST)


def test_a_folder_as_cub_is_unpacked_becomes_a_task(tmp_path: Path) -> None:
    source = tmp_path / "CUB_200_2011"
    lines: dict[str, list[str]] = {"images.txt": [], "train_test_split.txt": []}
    number = 0
    for label, colour in enumerate(("red", "blue")):
        (source / "images" / f"00{label}.bird").mkdir(parents=True)
        for at in range(12):
            number += 1
            path = f"00{label}.bird/{at}.png"
            image = Image.new("RGB", (32, 32), colour)
            image.putpixel((number, number), (255, 255, 255))  # equal pictures would be taken for one
            image.save(source / "images" / path)
            lines["images.txt"].append(f"{number} {path}")
            lines["train_test_split.txt"].append(f"{number} {int(at >= 4)}")
    for name, rows in lines.items():
        (source / name).write_text("\n".join(rows) + "\n")
    dataset = tasks.load(source, tmp_path / "data", Size(test=2))
    assert dataset.class_names == ("000.bird", "001.bird")
    assert dataset.counts()[Split.TEST] == [2, 2]
    assert sum(dataset.images(split) for split in (Split.TRAIN, Split.VAL)) == 16
    merged = tasks.load(source, tmp_path / "data", Size(), merged=True)
    assert (merged.images(Split.TRAIN), merged.images(Split.VAL), merged.images(Split.TEST)) == (16, 8, 0)


def test_released_recipes_are_found_by_backbone_and_dataset() -> None:
    shallow, deep = recipes.configurations("vit_base_patch16_224.mae", Pooling.MEAN_ALL, "CUB_200_2011")
    made = shallow.recipe(VIT_B, plan.FULL, 1, {})
    assert (made.learning_rate, made.weight_decay, made.head_weight_decay) == (5e-2, 5e-3, 0.5)
    assert (made.prompts, made.rank, made.epochs, made.warmup_epochs, made.head_fit_epochs) == (100, 75, 100, 10, 0)
    made = deep.recipe(VIT_B, plan.FULL, 1, {})
    assert (made.prompts, made.rank, made.depth) == (50, 50, Depth.DEEP)
    (only,) = recipes.configurations("vit_base_patch16_224.augreg_in21k", Pooling.CLS, "CUB_200_2011")
    assert (only.settings or {})["rank"] == 25
    with pytest.raises(InvalidSetting, match="no recipe was released for pets"):
        recipes.configurations("vit_base_patch16_224.mae", Pooling.MEAN_ALL, "pets")


def record(row: str, task: str, seed: int, test: float | None, **more: Any) -> Record:
    recipe = {**Recipe(Method.VPT, prompts=2, seed=seed).to_dict(), **more}
    facts: dict[str, Any] = {"parameters": 6144, "seconds": 2.0, "machine": "abacus", "val": 0.5}
    return Record(f"{row}{task}{seed}{more}", task, row, recipe, curve=[0.1, 0.4, 0.5], test=test, **facts)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two tasks, of which one has two seeds of `vpt shallow` and the other one."""
    spec = CATALOG["vit_tiny_patch8_64.mae"]
    names = ("name", "fingerprint", "pooling", "image_size", "patch_size", "embed_dim", "depth")
    backbone = {name: getattr(spec, name) for name in names}
    settings = {"backbone": backbone, "recipe": "search", "size": vars(plan.CUT), "tasks": ["dogs", "cars"]}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "settings.json").write_text(json.dumps(settings))
    written = Records(tmp_path / "results" / "runs.jsonl")
    for row in (
        record("vpt shallow", "dogs", 0, None, learning_rate=0.01),
        record("vpt shallow", "dogs", 0, None, learning_rate=0.1),
        record("vpt shallow", "dogs", 1, 0.2),
        record("vpt shallow", "dogs", 2, 0.4),
        record("vpt shallow", "cars", 1, 0.5),
        record("spt shallow", "dogs", 1, 0.25),
    ):
        written.add(row)
    return tmp_path / "results"


def test_the_page_has_means_spreads_and_what_is_missing(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks" / "paper.md"
    write_page(page, results)
    text = page.read_text()
    assert "| vpt shallow | 30.0 ± 14.1 | 50.0 | 40.0 | 6,144 | 2 |" in text
    assert "| spt shallow | 25.0 | - | - | 6,144 | 2 |" in text
    assert "| vpt shallow | dogs | 0.01 (edge) |" in text
    missing = 11 * 2 * 3 - 4
    assert f"- BPT, VPT, SPT: {missing} of 66 tested runs" in text
    assert "How many prompts\n" not in text
    assert "polyline" in (tmp_path / "docs" / "images" / "paper-curves.svg").read_text()


def test_what_was_written_by_hand_stays(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks" / "paper.md"
    write_page(page, results)
    assert UNWRITTEN in page.read_text()
    page.write_text(page.read_text().replace(UNWRITTEN, "BPT loses here,\n\nand this is why."))
    Records(results / "runs.jsonl").add(record("vpt shallow", "cars", 2, 0.7))
    write_page(page, results)
    text = page.read_text()
    assert "BPT loses here,\n\nand this is why." in text
    assert "| vpt shallow | 30.0 ± 14.1 | 60.0 ± 14.1 | 45.0 |" in text


def test_a_chart_places_its_points() -> None:
    drawn = chart("<title>", "x", "y", {"a & b": [(0, 0), (10, 1)]})
    assert "&lt;title&gt;" in drawn
    assert "a &amp; b" in drawn
    (points,) = re.findall(r'points="([^"]+)"', drawn)
    (left, low), (right, high) = (map(float, point.split(",")) for point in points.split())
    assert left < right
    assert low > high  # upwards is less
    ElementTree.fromstring(drawn)


def test_results_of_another_comparison_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{"size": "other"}')
    monkeypatch.setattr(sys, "argv", ["paper", "--results", str(tmp_path), "--dataset", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "holds another comparison" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("option", "expected"), [("--dataset", "there is no nowhere.zip"), ("--page", "holds no comparison")]
)
def test_what_is_not_there_is_named_and_nothing_is_left(
    option: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["paper", "--results", "results", option, "nowhere.zip"])
    with pytest.raises(SystemExit):
        main()
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_whole_command_runs_and_writes_its_page(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "drawn.zip"
    samples.write_archive(archive, train=3, val=2, test=2)
    monkeypatch.setattr(paper_main, "load_backbone", lambda *_arguments, **_more: backbone)
    every, methods = plan.suites, Suite("methods", (PROBE, BILINEAR))
    monkeypatch.setattr(plan, "suites", lambda shape: {**every(shape), "methods": methods})
    results, page = tmp_path / "results", tmp_path / "docs" / "benchmarks" / "paper.md"
    options = "--train 2 --val 2 --epochs 1 --warmup-epochs 0 --trials 2 --seeds 1 --widenings 0 --head-fit-epochs 1"
    options += " --suites methods"
    monkeypatch.setattr(sys, "argv", ["paper", "--dataset", str(archive), "--results", str(results), *options.split()])
    main()
    printed = capsys.readouterr().out
    assert "2/2 drawn, bpt-bilinear shallow, seed 1" in printed
    assert len(Records(results / "runs.jsonl")) == 6
    monkeypatch.setattr(sys, "argv", ["paper", "--results", str(results), "--page", str(page)])
    main()
    assert "| linear-probe |" in page.read_text()
    assert "P of bpt-bilinear shallow" in (tmp_path / "docs" / "images" / "paper-burstiness.svg").read_text()

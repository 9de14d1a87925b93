"""The benchmarks run and say what they promise. Their times mean nothing here and are not looked at."""

import json

import pytest
import torch

from benchmarks import evaluate, inference, measure, pooling, predict, train_step

CPU = torch.device("cpu")
QUICK = ("--quick", "--device", "cpu", "--threads", "1", "--repeats", "1")
TRAIN_PHASES = {"tower", "FPN", "RPN", "proposals", "targets", "RoIAlign", "box head", "losses"} | {
    "backward",
    "optimiser",
    "the rest",
}
INFERENCE_PHASES = {"tower", "FPN", "RPN", "proposals", "RoIAlign", "box head", "VLM pool", "the rest"}


@pytest.mark.slow
def test_a_training_step_is_compared_with_both_forms_of_torchvision_s_detector(tmp_path, capsys):
    file = tmp_path / "out.json"
    result = train_step.main([*QUICK, "--no-memory", "--profile", "--json", str(file)])
    assert json.loads(file.read_text()) == result
    assert [row["detector"] for row in result["rows"]] == ["fvlm", "torchvision, 3 stages", "torchvision, frozen"]
    ours, trained, frozen = result["rows"]
    assert ours["times ours"] == 1 and all(row["TFLOP/s"] > 0 for row in result["rows"])
    assert all(row["peak MiB"] is None for row in result["rows"])
    assert trained["TFLOP"] > frozen["TFLOP"] > 0  # only one of them computes gradients of its backbone
    assert {row["phase"] for row in result["phases"]} == TRAIN_PHASES
    assert sum(row["share"] for row in result["phases"]) == pytest.approx(1)
    assert {"benchmark", "command", "date", "machine", "versions", "matmul_tflops_per_s", "operators"} <= result.keys()
    assert result["command"].startswith("python -m benchmarks.train_step --quick")
    assert "torchvision, frozen" in capsys.readouterr().out


@pytest.mark.slow
def test_inference_is_compared_and_its_vlm_branch_is_a_phase(capsys):
    result = inference.main([*QUICK, "--profile"])
    assert [row["detector"] for row in result["rows"]] == ["fvlm", "torchvision, frozen"]
    assert all(row["peak MiB"] > row["less libraries"] > 0 for row in result["rows"])
    assert {row["phase"] for row in result["phases"]} == INFERENCE_PHASES
    assert "VLM pool" in capsys.readouterr().out


def test_both_forms_of_the_pool_are_timed_on_the_same_regions_and_agree():
    argv = [*QUICK, "--image-size", "128", "--regions", "6", "--plain-regions", "3"]
    [row] = pooling.main([*argv, "--towers", "RN50x4-quickgelu"])["rows"]
    assert (row["tower"], row["grid"], row["heads"]) == ("RN50x4-quickgelu", 9, 40)
    assert row["largest difference"] < 1e-5 and row["times ours"] > 0


@pytest.mark.slow
def test_evaluation_is_timed_and_all_three_counts_agree(tmp_path, capfd):
    file = tmp_path / "out.json"
    result = evaluate.main(["--images", "60", "--regions", "40", "--processes", "1", "--json", str(file)])
    assert json.loads(file.read_text()) == result
    rows = {row[""]: row for row in result["rows"]}
    assert list(rows) == ["protocol", "sweep", "counting, fvlm", "faster-coco-eval", "pycocotools"]
    novel = rows["protocol"]["AP50 novel"]
    assert 5 < novel < 95
    assert all(row["AP50 novel"] == pytest.approx(novel, abs=1e-4) for row in rows.values())
    assert all(rows[name]["peak GiB"] > 0.1 and rows[name]["s"] > 0 for name in ("protocol", "sweep"))
    assert not result["limit_exceeded"]
    assert "limits: one protocol 60 s and 4 GiB, sweep 600 s: kept" in capfd.readouterr().out


@pytest.mark.slow
def test_prediction_is_timed_by_batch_size_with_the_share_of_each_part():
    result = predict.main([*QUICK, "--image-size", "64", "--proposals", "20", "--names", "3", "--batches", "1", "2"])
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        assert sum(row[phase] for phase in predict.PHASES) == pytest.approx(1)
        assert row["images/s"] > 0 and all(row[phase] > 0 for phase in predict.PHASES)
    assert [row["grid"] for row in result["pool"]] == [7, 9, 12, 14]


def test_runs_are_interleaved_and_each_round_begins_with_another():
    calls = []
    laps = measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(laps[name]) for name in "ab"] == [3, 3]


def test_operations_count_the_backward_pass():
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3, requires_grad=True)
    forward = 2 * 3 * 8 * 8 * 2 * 9 / 1e12
    assert measure.tera_operations(lambda: torch.conv2d(x, w, padding=1)) == pytest.approx(forward)
    both = measure.tera_operations(lambda: torch.conv2d(x, w, padding=1).sum().backward())
    assert both == pytest.approx(2 * forward)  # the gradient of w, not of x


class Worker:
    def __init__(self):
        self.now = 0.0

    def outer(self):
        self.now += 2
        self.inner()
        self.now += 1

    def inner(self):
        self.now += 5


def test_a_nested_phase_counts_for_the_inner_one_only_and_the_clocks_come_off_again(monkeypatch):
    worker, watch = Worker(), measure.Stopwatch(CPU)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: worker.now)
    with watch.timing({"outer": [(worker, "outer")], "inner": [(worker, "inner")]}), watch.phase("the rest"):
        worker.now += 0.5
        worker.outer()
    assert watch.seconds == {"the rest": 0.5, "outer": 3, "inner": 5}
    worker.outer()
    assert watch.seconds == {"the rest": 0.5, "outer": 3, "inner": 5}


def test_columns_are_aligned_and_what_is_not_measured_is_a_dash(capsys):
    measure.show([{"name": "a", "x": 1.25}, {"name": "bcd", "x": None}], {"name": "", "x": ".1f"})
    assert capsys.readouterr().out.splitlines() == ["name    x", "a     1.2", "bcd     -"]

"""Both engines over the same files, as their users call them; the stages' modules are replaced by quick stand-ins."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fvlm.params import read_tree

pytest.importorskip("snakemake", reason="Snakemake 9.27 does not exist for Python 3.10")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
AFTER_EVALUATE = [
    "evaluate@ovod-0", "evaluate@zsd-0", "first_seed@ovod", "first_seed@zsd", "package@ovod", "package@zsd", "report",
]  # fmt: skip
AFTER_TRAIN = sorted(["detect@ovod-0", "detect@zsd-0", "train@ovod-0", "train@zsd-0", *AFTER_EVALUATE])
EVERY_STAGE = sorted(["download", "splits@ovod", "splits@zsd", "text", "val_splits", "vlm", *AFTER_TRAIN])


class Project:
    """A clone of the repository whose stages are stand-ins, and what ran in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran_file = folder.parent / f"{folder.name}.ran"
        for name in (
            ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "Snakefile", "ablations/README.md",
            "dvc.yaml", "fvlm", "profiles", "workflow",
        ):  # fmt: skip
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        shutil.copy(ROOT / "recipes" / "emoji.yaml", folder / "params.yaml")
        for stage in (folder / "fvlm" / "stages").glob("[a-z]*.py"):
            shutil.copy(ROOT / "tests" / "stand_in_stage.py", stage)
        self.call("git", "init", "-q")
        self.call("git", "add", "-A")
        self.call("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")

    def call(self, *command: str, expect: int = 0) -> str:
        """Run a command as in an activated environment; its exit code must be `expect`. Returns all that it printed."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "RAN": str(self.ran_file), "GIT_CONFIG_GLOBAL": os.devnull}
        process = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.returncode == expect, process.stdout
        return process.stdout

    def ran(self) -> list[str]:
        """The stages that ran since the last question."""
        lines = sorted(self.ran_file.read_text().split()) if self.ran_file.exists() else []
        self.ran_file.unlink(missing_ok=True)
        return lines

    def edit(self, change: Callable[[dict], None]) -> None:
        tree = read_tree(self.folder / "params.yaml")
        change(tree)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))

    def snakemake_has_nothing_to_do(self) -> bool:
        plan = self.call("snakemake", "all", "-n")
        return "Nothing to be done" in plan and "provenance" not in plan

    def snakemake_would_run(self) -> list[str]:
        """What `ran` would say after `snakemake all`."""
        plan = self.call("snakemake", "all", "-n", "--cores", "8")
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)*)", plan, flags=re.MULTILINE)
        stages = []
        for rule, details in jobs:
            wildcards = dict(re.findall(r"(setting|seed)=(\w+)", details))
            of = "-".join(wildcards[key] for key in ("setting", "seed") if key in wildcards)
            stages.append(f"{rule}@{of}" if of else rule)
        return sorted(stage for stage in stages if stage != "all")


@pytest.fixture(scope="module")
def built_by_snakemake(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("built_by_snakemake") / "fvlm")
    project.call("snakemake", "all", "--cores", "8")
    assert project.ran() == EVERY_STAGE
    return project


def test_after_snakemake_neither_engine_has_anything_to_run(built_by_snakemake: Project) -> None:
    project = built_by_snakemake
    assert project.snakemake_has_nothing_to_do()
    project.call("dvc", "repro")
    assert project.ran() == []
    assert project.call("git", "status", "--porcelain") == "?? dvc.lock\n"


def test_a_change_runs_what_depends_on_it_alone_in_both_engines(built_by_snakemake: Project) -> None:
    project = built_by_snakemake
    report = project.folder / "fvlm" / "stages" / "report.py"
    changes: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: project.edit(lambda tree: tree["evaluate"].update(alpha=0.3)), AFTER_EVALUATE),
        (lambda: project.edit(lambda tree: tree["train"].update(learning_rate=0.01)), AFTER_TRAIN),
        (lambda: report.write_text(report.read_text() + "\n# edited\n"), ["report"]),
    ]
    for change, expected in changes:
        before = {file: file.read_text() for file in (project.folder / "params.yaml", report)}
        change()
        assert project.snakemake_would_run() == expected
        for file, text in before.items():
            file.write_text(text)
    for change, expected in changes:
        change()
        project.call("dvc", "repro")
        assert project.ran() == expected
    assert "recorded DVC's results" in project.call("python", "-m", "fvlm", "sync")
    assert project.snakemake_has_nothing_to_do()


def test_an_ablation_that_was_run_renders_the_report_again_in_both_engines_and_runs_nothing_else(
    built_by_snakemake: Project,
) -> None:
    """Nor does a comparison that params no longer belong to bring `all` to train its variants again."""
    project = built_by_snakemake
    folder = project.folder / "ablations" / "freeze"
    (folder / "none").mkdir(parents=True)
    (folder / "none" / "model.safetensors").write_text("gigabytes that DVC should not hash")
    (folder / "comparison.json").write_text("{}")
    project.call("snakemake", "all", "--cores", "2")  # and its hook
    assert project.ran() == ["report"]
    assert project.snakemake_has_nothing_to_do()
    project.call("dvc", "repro")
    assert project.ran() == []
    (folder / "comparison.json").write_text("[]")
    assert project.snakemake_would_run() == ["report"]
    project.call("dvc", "repro")
    assert project.ran() == ["report"]
    assert "ablations" not in project.call("git", "status", "--porcelain")


def test_an_ablation_plans_what_the_pipelines_own_run_lacks(built_by_snakemake: Project) -> None:
    project = built_by_snakemake
    plan = project.call("snakemake", "setting_ablation", "prompt_ablation", "-n", "--cores", "8")
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", plan, flags=re.MULTILINE)}
    assert {rule: count for rule, count in jobs.items() if rule not in ("total", "report")} == {
        "ablation_detect": 4,  # zsd_strict; the pairs of detectors and texts but that of the pipeline
        "ablation_evaluate": 7,
        "ablation_table": 2,
        "ablation_text": 2,
        "ablation_train": 2,  # zsd_strict; with one template
        "prompt_ablation": 1,
        "setting_ablation": 1,
        "splits": 1,  # of zsd_strict, which is not among settings
    }


def test_metrics_diff_compares_the_settings_and_nothing_retrains(built_by_snakemake: Project) -> None:
    project = built_by_snakemake
    before = (project.folder / "params.yaml").read_text()
    for setting in ("zsd", "ovod"):
        project.call("dvc", "exp", "run", "-n", setting, "-S", f"report.setting={setting}")
    assert set(project.ran()) <= {"report"}
    table = project.call("dvc", "metrics", "diff", "zsd", "ovod")
    assert "metrics.json" in table
    assert "a_number" in table
    (project.folder / "params.yaml").write_text(before)
    project.call("dvc", "repro")
    assert set(project.ran()) <= {"report"}


def test_dvc_first_then_sync_leaves_snakemake_nothing_and_it_sees_the_next_change(tmp_path: Path) -> None:
    project = Project(tmp_path / "fvlm")
    assert "neither engine" in project.call("python", "-m", "fvlm", "sync", expect=2)
    assert "nothing recorded yet" in project.call("python", "-m", "fvlm", "sync", "--if-complete")
    project.call("dvc", "repro")
    assert project.ran() == EVERY_STAGE
    project.call("python", "-m", "fvlm", "sync")
    assert project.snakemake_has_nothing_to_do()
    assert project.call("git", "status", "--porcelain") == "?? dvc.lock\n"
    project.edit(lambda tree: tree["text"].update(background="scenery"))
    assert project.snakemake_would_run() == sorted(["text", *AFTER_TRAIN])


def test_settings_of_params_are_the_settings_that_run(tmp_path: Path) -> None:
    project = Project(tmp_path / "fvlm")
    project.edit(lambda tree: tree.update(settings=["zsd_strict"]) or tree["report"].update(setting="zsd_strict"))
    project.call("snakemake", "all", "--cores", "2", "--no-hooks")
    assert [stage for stage in project.ran() if "@" in stage] == [
        "detect@zsd_strict-0", "evaluate@zsd_strict-0", "first_seed@zsd_strict", "package@zsd_strict",
        "splits@zsd_strict",
        "train@zsd_strict-0",
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
def test_a_seed_that_is_added_dropped_or_moved_trains_no_other_again(tmp_path: Path, engine: str) -> None:
    project = Project(tmp_path / "fvlm")

    def repeat(seeds: list[int]) -> list[str]:
        project.edit(lambda tree: tree.update(settings=["zsd"], seeds=seeds))
        if engine == "snakemake":
            planned = project.snakemake_would_run()
            project.call("snakemake", "all", "--cores", "4", "--no-hooks")
        else:
            project.call("dvc", "repro")
        ran = project.ran()
        assert engine == "dvc" or planned == ran
        return ran

    assert [stage for stage in repeat([0, 1]) if stage.startswith("train")] == ["train@zsd-0", "train@zsd-1"]
    assert repeat([0, 1, 2]) == ["detect@zsd-2", "evaluate@zsd-2", "report", "train@zsd-2"]
    assert repeat([1, 2]) == ["first_seed@zsd", "package@zsd", "report"]
    if engine == "dvc":
        assert "zsd_seed2" in project.call("dvc", "metrics", "show")


@pytest.mark.parametrize("command", ["python -m fvlm splits --setting zsd", "snakemake all --cores 1", "dvc repro"])
def test_every_wrong_param_has_a_line_and_no_entry_point_starts_work(tmp_path: Path, command: str) -> None:
    project = Project(tmp_path / "fvlm")
    project.edit(lambda tree: tree["train"].update(lrr=1, steps="many") or tree["evaluate"].update(alpha=2))
    said = project.call(*command.split(), expect={"python": 2, "snakemake": 1, "dvc": 255}[command.split()[0]])
    for finding in ("train.lrr: unknown key", "train.steps: expected", "evaluate.alpha: expected"):
        assert sum(finding in line for line in said.splitlines()) == 1, said
    assert "Traceback" not in said
    assert project.ran() == []


def test_config_on_snakemakes_command_line_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path / "fvlm")
    assert "would be silently ignored" in project.call("snakemake", "all", "-n", "--config", "settings=zsd", expect=1)


def test_the_number_of_cores_does_not_reach_the_stages(tmp_path: Path) -> None:
    project = Project(tmp_path / "fvlm")
    project.edit(lambda tree: tree["compute"].update(threads=2))
    (project.folder / "fvlm" / "stages" / "download.py").write_text(
        "import os\n\nfrom fvlm.io import write_json\n\n\n"
        "def run(params):\n    write_json('data/emoji/manifest.json', os.environ['OMP_NUM_THREADS'])\n"
    )
    project.call("snakemake", "data/emoji/manifest.json", "--cores", "1", "--no-hooks")
    assert (project.folder / "data" / "emoji" / "manifest.json").read_text() == '"2"\n'


def test_the_slurm_profile_sends_training_to_a_gpu_node(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project = Project(tmp_path / "fvlm")
    project.edit(lambda tree: tree["compute"].update(device="cuda", threads=2))
    plan = project.call("snakemake", "all", "-n", "--workflow-profile", "workflow/profiles/slurm")
    resources = dict(re.findall(r"^rule (\w+):\n(?: .*\n)*? +resources: (.*)", plan, flags=re.MULTILINE))
    for rule in ("train", "detect"):
        assert "slurm_partition=gpu, gpu=1" in resources[rule]
    for rule in ("splits", "report"):
        assert "slurm_partition=cpu" in resources[rule]
        assert "gpu=1" not in resources[rule]
    assert "runtime=1440" in resources["train"]


def test_a_training_of_four_processes_is_one_job_with_four_gpus_and_their_cores(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project = Project(tmp_path / "fvlm")
    project.edit(lambda tree: tree["compute"].update(device="cuda", threads=2, processes=4))
    project.edit(lambda tree: tree["train"].update(workers=3))
    plan = project.call("snakemake", "all", "-n", "--workflow-profile", "workflow/profiles/slurm", "--cores", "64")
    jobs = dict(re.findall(r"^rule (\w+):\n((?: .*\n)*)", plan, flags=re.MULTILINE))
    assert "gpu=4" in jobs["train"] and "nodes=1" in jobs["train"] and "threads: 20" in jobs["train"]
    assert "tasks" not in jobs["train"], "the plugin would start so many for each GPU"
    assert "gpu=1" in jobs["detect"] and "threads: 2\n" in jobs["detect"]
    assert "gpu=4" in project.call("snakemake", "all", "-n", "--cores", "64"), "without the profile too"

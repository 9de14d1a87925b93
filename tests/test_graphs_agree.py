"""dvc.yaml and workflow/rules/ are hand-written twins: the same stages, commands, dependencies, outputs and params.

Both are loaded by their own engine, from the sources alone, so that nothing already built has a say. The code that a
stage depends on is computed from its imports.
"""

import ast
import contextlib
import functools
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvlm.cli import PER_SEED, PER_SETTING, PER_VARIANT, STAGES
from fvlm.params import read_tree

pytest.importorskip("snakemake", reason="Snakemake 9.27 does not exist for Python 3.10")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fvlm"
SUFFIXES = (".json", ".j2", ".csv", ".css", ".js")
DATA_FILES = [f for f in PACKAGE.rglob("*") if f.suffix in SUFFIXES and f.parent.name != "demo"]  # which is no stage
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
BESIDE_ALL = {*PER_VARIANT, "ablation_table"}  # targets of Snakemake's alone
IN_ALL = [stage for stage in STAGES if stage not in BESIDE_ALL]
Graph = dict[str, dict[str, Any]]

# Code that no stage lists, since an edit of it should not train for hours again. These modules read arguments and
# params, name paths and write files: what they pass on is itself a dependency (the params, the files). fvlm.compute
# applies the section `compute`, which is a param of every stage that uses it; fvlm.processes starts what it says.
PLUMBING = {
    "__init__",
    "__main__",
    "cli",
    "errors",
    "io",
    "tensors",
    "layout",
    "params",
    "processes",
    "compute",
    "sync",
}


def snakemake_graph(folder: Path, target: str = "all") -> Graph:
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

    shutil.copytree(PACKAGE, folder / "fvlm", ignore=shutil.ignore_patterns("__pycache__"))
    graph = {}
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=8), snakefile=ROOT / "Snakefile", workdir=folder
        )
        dag = workflow.dag(dag_settings=DAGSettings(targets={target}))
        with contextlib.redirect_stdout(io.StringIO()):
            dag.printd3dag()  # builds the graph, runs nothing
        for job in workflow._workflow.dag.jobs:
            if job.rule.name != target:
                graph["@".join([job.rule.name, "-".join(job.wildcards_dict.values())]).rstrip("@")] = {
                    "command": re.sub(r"\s*(2>&1 \| tee|>) logs/\S+( 2>&1)?$", "", job.shellcmd.strip()),
                    "deps": sorted(map(str, job.input)),
                    "outs": sorted(map(str, job.output)),
                    "params": json.loads(job.params.get("sections", "null")),
                }
    return graph


def dvc_graph(folder: Path) -> Graph:
    from dvc.repo import Repo

    shutil.copy(ROOT / "dvc.yaml", folder)
    tree = read_tree(folder / "params.yaml")
    graph = {}
    with Repo.init(str(folder), no_scm=True) as repo:  # works from a tarball too
        for stage in repo.index.stages:
            sections = {key for dep in stage.deps for key in getattr(dep, "params", None) or []}
            graph[stage.name] = {
                "command": stage.cmd.strip(),
                "deps": sorted(dep.def_path for dep in stage.deps if not hasattr(dep, "params")),
                "outs": sorted(out.def_path for out in stage.outs),
                "params": {section: tree[section] for section in sections},
                "cached": all(out.use_cache for out in stage.outs),
            }
    return graph


def expanded(deps: list[str], outs: set[str]) -> list[str]:
    """`deps` with each folder that DVC names replaced by what stages write below it, without the tensors.

    DVC cannot expand the list of settings in `deps`, so the report's stage depends on folders. It reads no tensors. The
    folder `ablations` is a param of Snakemake's (see `shown_ablations`), which test_workflow.py runs.
    """
    files: list[str] = []
    for dep in set(deps) - {"ablations"}:
        below = [out for out in outs if out.startswith(f"{dep}/") and not out.endswith(".safetensors")]
        files += below or [dep]
    return sorted(files)


SEVERAL_SEEDS = "emoji, seeds 2, 0, 10"


@pytest.fixture(scope="module", params=[*RECIPES, SEVERAL_SEEDS], ids=lambda recipe: getattr(recipe, "stem", recipe))
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Graph]:
    several = request.param == SEVERAL_SEEDS
    tree = read_tree(ROOT / "recipes" / "emoji.yaml" if several else request.param)
    if several:
        tree.update(settings=["zsd", "ovod"], seeds=[2, 0, 10])
    folders = [tmp_path_factory.mktemp(engine) for engine in ("snakemake", "dvc")]
    for folder in folders:
        (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return snakemake_graph(folders[0]), dvc_graph(folders[1])


def test_both_engines_have_the_command_lines_stages_in_every_setting_and_seed(graphs: tuple[Graph, Graph]) -> None:
    snakemake, dvc = graphs
    params = dvc["report"]["params"]
    expected = set(IN_ALL) - set(PER_SETTING)
    for setting in params["settings"]:
        expected |= {f"{stage}@{setting}" for stage in PER_SETTING if stage not in PER_SEED}
        expected |= {f"{stage}@{setting}-{seed}" for stage in PER_SEED for seed in params["seeds"]}
    assert set(snakemake) == expected
    assert set(dvc) == expected


def test_a_run_depends_on_no_other_seed_and_the_paths_without_one_on_the_first(graphs: tuple[Graph, Graph]) -> None:
    for graph in graphs:
        seeds = graph["report"]["params"]["seeds"]
        for name, stage in graph.items():
            of = {int(seed) for path in stage["deps"] for seed in re.findall(r"_seed(\d+)[/.]", path)}
            if name.partition("@")[0] in PER_SEED:
                assert of <= {int(name.rpartition("-")[2])}
                assert "seeds" not in stage["params"], "or a seed that is added would train the others again"
            elif name.startswith("first_seed"):
                assert of == {seeds[0]}


@pytest.mark.parametrize("field", ["command", "outs", "params"])
def test_the_twins_agree(graphs: tuple[Graph, Graph], field: str) -> None:
    snakemake, dvc = graphs
    assert {name: job[field] for name, job in snakemake.items()} == {name: stage[field] for name, stage in dvc.items()}


def test_the_twins_agree_on_dependencies(graphs: tuple[Graph, Graph]) -> None:
    snakemake, dvc = graphs
    outs = {out for stage in dvc.values() for out in stage["outs"]}
    assert {name: job["deps"] for name, job in snakemake.items()} == {
        name: expanded(stage["deps"], outs) for name, stage in dvc.items()
    }


def test_every_output_is_in_dvcs_cache_and_none_is_in_git(graphs: tuple[Graph, Graph]) -> None:
    """Otherwise a fresh clone would hold results that nobody on that machine computed."""
    import pathspec

    ignored = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".gitignore").read_text().splitlines())
    for stage in graphs[1].values():
        assert stage["cached"]
        assert [out for out in stage["outs"] if not ignored.match_file(out)] == []


def code_behind(stage: str) -> set[str]:
    """The package's files that change what a stage computes: its module, what that imports, and the data they name."""
    data_files = [file for file in DATA_FILES if file.name != "params.schema.json"]
    seen: set[Path] = set()
    files: set[Path] = set()
    queue = [PACKAGE / "stages" / f"{stage}.py"]
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        text, imported = parsed(module)
        if module.parent != PACKAGE or module.stem not in PLUMBING:
            queue += imported
            files |= {data_file for data_file in data_files if data_file.name in text}
            if module.name != "__init__.py":
                files.add(module)
    return {file.relative_to(ROOT).as_posix() for file in files}


@functools.cache
def parsed(module: Path) -> tuple[str, list[Path]]:
    """The text of `module`, and the package's own modules that it imports anywhere, also inside its functions."""
    text, found = module.read_text(), []
    package = ["fvlm", *module.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = above + (node.module.split(".") if node.module else [])
            names = [base, *([*base, alias.name] for alias in node.names)]
        else:
            continue
        for name in names:
            if name[0] == "fvlm":
                path = PACKAGE.joinpath(*name[1:])
                found += [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return text, found


@pytest.mark.parametrize("stage", IN_ALL)
def test_a_stage_depends_on_exactly_the_code_that_it_imports(stage: str) -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    declared, imported = {dep for dep in deps if dep.startswith("fvlm/")}, code_behind(stage)
    message = f"add to {stage} in dvc.yaml and workflow/rules/: {sorted(imported - declared)}; "
    assert declared == imported, message + f"take out: {sorted(declared - imported)}"


def test_an_ablations_stage_depends_on_exactly_the_code_that_it_imports(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "recipes" / "emoji.yaml").read_text())
    jobs = snakemake_graph(tmp_path, "prompt_ablation")
    stages = {job.split("@")[0]: details["deps"] for job, details in jobs.items()}
    for stage in sorted(BESIDE_ALL):
        declared, imported = {dep for dep in stages[stage] if dep.startswith("fvlm/")}, code_behind(stage)
        if stage != "ablation_table":  # a variant's params are dependencies: a new variant trains no other again
            imported -= {"fvlm/ablations.py"}
        message = f"add to {stage} in workflow/rules/ablation.smk: {sorted(imported - declared)}; "
        assert declared == imported, message + f"take out: {sorted(declared - imported)}"


def test_every_data_file_of_the_package_belongs_to_some_stage() -> None:
    behind_any = set().union(*(code_behind(stage) for stage in IN_ALL))
    assert {file.relative_to(ROOT).as_posix() for file in DATA_FILES} - behind_any == {"fvlm/params.schema.json"}


def test_the_rule_graph_in_the_readme_is_current() -> None:
    command = [sys.executable, "workflow/rulegraph.py", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_the_conda_environment_names_the_packages_of_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    environment = yaml.safe_load((ROOT / "workflow" / "envs" / "fvlm.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    engines = ("dvc", "snakemake")
    assert pip == [package for package in wanted if not package.startswith(engines)]

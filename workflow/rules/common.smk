import dataclasses
import json
import os
import re
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

# the fvlm of this folder, which the stages import, and not another one that is installed
sys.path.insert(0, os.getcwd())
from fvlm import layout
from fvlm.ablations import ABLATIONS, plan
from fvlm.errors import InputError
from fvlm.io import sha256_of_file
from fvlm.params import SETTINGS as ALL_SETTINGS
from fvlm.params import load_params, read_tree, weights_path

if config:
    raise WorkflowError(
        "The stages read params.yaml themselves, so --config and --configfile would be silently ignored. "
        "Edit params.yaml (or `dvc exp run -S section.key=value`)."
    )

# Read by the stages' own reader, not by `configfile:`, whose YAML takes 1e-4 for a text and keeps the last of two
# equal keys; and checked by their own checks, which name every finding on a line of its own.
try:
    PARAMS = load_params("params.yaml")
except InputError as error:
    raise WorkflowError(str(error)) from None
config.update(read_tree("params.yaml"))
validate(config, "../../fvlm/params.schema.json", set_default=False)

# The stages run under the Python that runs Snakemake, also where its environment is not activated.
os.environ.update(PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath))

SETTINGS = config["settings"]
SEEDS = config["seeds"]
# what lies in runs/<setting>_seed<seed>/, and in runs/<setting>/ for the first seed
RUN_FILES = [
    "model.safetensors",
    "train.json",
    "losses.csv",
    "raw_detections.safetensors",
    "per_class.csv",
    "precision_recall.csv",
    "errors.csv",
    "fusion_sweep.csv",
    "protocol_variants.csv",
    "detections.json",
    "detections_detector_only.json",
]
TABLES_OF_RUN = [file for file in RUN_FILES if not file.endswith(".safetensors")]
RUNS = SETTINGS + expand("{setting}_seed{seed}", setting=SETTINGS, seed=SEEDS)
THREADS = config["compute"]["threads"]
PRETRAIN_THREADS = (config["vlm"].get("pretrain") or config["compute"])["threads"]
GPUS = 1 if config["compute"]["device"] == "cuda" else 0
# a weights file of the user's: a change of it is noticed like that of any input. DVC has no dependency that is there in
# some params only; the vlm stage says so.
OWN_WEIGHTS = [str(path)] if (path := weights_path(config["vlm"]["weights"])) else []
# A training's processes are tasks of one job: the stage starts them itself, each with its threads, loaders and GPU.
PROCESSES = config["compute"]["processes"]
TRAIN_THREADS = PROCESSES * (THREADS + config["train"]["workers"])
TRAIN_GPUS = PROCESSES * GPUS
EVALUATE_PROCESSES = config["evaluate"]["processes"]
MANIFEST = f"data/{config['data']['dataset']}/manifest.json"


wildcard_constraints:
    setting="|".join(SETTINGS),
    seed="|".join(map(str, SEEDS)),


def sections(*names):
    """The named sections of params.yaml as ONE canonical string.

    Snakemake compares the set of a rule's params values without their names, so two numbers that swap would go
    unnoticed; one string does not. The stages do not see it: they read params.yaml.
    """
    return json.dumps({name: config[name] for name in names}, sort_keys=True)


def shown_ablations():
    """The contents of the ablations that the report would show, as one string for its params.

    No input of the report: Snakemake would then bring each ablation up to date before it, and train for hours. As a param
    its content reruns the report and nothing else. DVC's twin is the folder `ablations` among the report's deps.
    """
    return json.dumps({str(path): sha256_of_file(path) for path in sorted(layout.ABLATIONS.glob("*/comparison.json"))})


def planned(wildcards):
    """How the variant of an ablation is computed."""
    return plan(PARAMS, wildcards.ablation, wildcards.variant)


def of_variant(file):
    """Input: a file of the variant of an ablation, its own or the pipeline's."""

    def path(wildcards):
        return str(getattr(planned(wildcards), file))

    return path


def sections_of_variant(*names):
    """As `sections`, with the variant's changes: another value in params.yaml of what it changes does not rerun it."""

    def canonical(wildcards):
        params = planned(wildcards).params
        return json.dumps({name: dataclasses.asdict(getattr(params, name)) for name in names}, sort_keys=True)

    return canonical


def scores_of_variants(wildcards):
    """Input: the scores of all variants of an ablation."""
    return [
        f"ablations/{wildcards.ablation}/{variant}/scores.json" for variant in ABLATIONS[wildcards.ablation].variants
    ]

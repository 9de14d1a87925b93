"""The command line: the only place that parses arguments and turns errors into exit codes."""

import argparse
import errno
import importlib
import json
import os
import sys
import types
from collections.abc import Collection, Sequence
from typing import Any

from . import processes
from .ablations import ABLATIONS
from .data.class_split import SPLIT_FILES
from .errors import InputError
from .params import SETTINGS, Params, load_params, schema
from .sync import sync

STAGES = {
    "download": "obtain or render the pictures and annotations, and write their manifest",
    "vlm": "obtain or pretrain the vision-language model",
    "splits": "build the training split of one setting",
    "val_splits": "build the validation splits of the three protocols, and the counts table",
    "text": "cache the text embeddings of background and every class",
    "train": "train the detector of one setting",
    "detect": "run the detector of one setting over the validation pictures, once",
    "evaluate": "score one setting under every protocol, from its raw detections",
    "first_seed": "copy the first seed's run of one setting to the paths without a seed",
    "package": "make runs/<setting>/ a model folder, which can be copied, pushed and loaded anywhere",
    "report": "render tables, plots and the report page, and metrics.json of report.setting",
    "ablation_text": "text embeddings of an ablation's variant (`snakemake prompt_ablation` runs all that is needed)",
    "ablation_train": "train the detector of an ablation's variant",
    "ablation_detect": "run the detector of an ablation's variant over the validation pictures",
    "ablation_evaluate": "score an ablation's variant",
    "ablation_table": "table and plot of an ablation, from the scores of its variants",
}
WITHOUT_PARAMS = ("predict", "demo", "push", "export")
TRAINING = ("train", "ablation_train")  # run in compute.processes processes
MODEL = "runs/zsd"
MODEL_HELP = f"model folder or hf-hub:<owner>/<name> (default: {MODEL})"
PER_SETTING = ("splits", "train", "detect", "evaluate", "first_seed", "package")
PER_VARIANT = ("ablation_text", "ablation_train", "ablation_detect", "ablation_evaluate")
PER_SEED = ("train", "detect", "evaluate")
SEED_HELP = (
    "one of the seeds in params.yaml, with files in runs/<setting>_seed<seed>/ (default: the first, in runs/<setting>/)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 `check` found something wrong, 2 bad input (said in one line a finding), 130
        interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(_parser().parse_args(argv), argv)
    except InputError as error:
        return _failed(f"error: {error}" if "\n" not in str(error) else str(error), 2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return _failed(f"error: the disk is full: {error}; free some space and run the same command again", 2)
        if error.filename is None:
            raise
        # a folder that may not be entered, a link to a disk that is not mounted, a folder where a file should be, ...
        reason = f"{error.strerror or error} ({type(error).__name__})"
        return _failed(
            f"error: {error.filename2 or error.filename}: {reason}; mend it and run the same command again", 2
        )
    except KeyboardInterrupt:
        return _failed("interrupted; run the same command again to go on", 130)
    except Exception:
        if processes.under_torchrun() and not processes.is_first_to_fail():
            return 2  # it failed for want of another process, which has said why
        raise


def _failed(message: str, code: int) -> int:
    """Say `message` once, however many processes fail with it."""
    if not processes.under_torchrun() or processes.is_first_to_fail():
        print(message, file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    if arguments.command == "schema":
        print(json.dumps(schema(), indent=1))
        return 0
    if arguments.command == "score":
        _module("fvlm.score").run(
            arguments.results,
            annotations=arguments.annotations,
            split=arguments.split,
            protocol=arguments.protocol,
            images=arguments.images,
            json_path=arguments.json,
        )
        return 0
    if arguments.command in WITHOUT_PARAMS:
        return _on_a_model(arguments)
    params = load_params(arguments.params)
    if arguments.command == "check-params":
        print(f"{arguments.params}: valid")
        return 0
    if arguments.command == "sync":
        print(sync(if_complete=arguments.if_complete))
        return 0
    options: dict[str, Any] = {}
    if "setting" in arguments:
        asked = params.report.setting if arguments.setting is None else arguments.setting
        # `snakemake setting_ablation` needs the training splits of settings that the pipeline does not run
        of_any = arguments.command == "splits"
        options["setting"] = _known(asked, SETTINGS, "--setting") if of_any else _known_setting(asked, params)
    if "seed" in arguments:
        options["seed"] = _known_seed(arguments.seed, params)
    if "name" in arguments:
        options["name"] = _known(arguments.name, ABLATIONS, "--name")
    if "variant" in arguments:
        options["variant"] = _known(arguments.variant, ABLATIONS[arguments.name].variants, "--variant")
    _set_threads(params.compute.threads)
    if arguments.command == "check":
        return 0 if _module("fvlm.check").run(params, json_path=arguments.json, **options) else 1
    if arguments.command in TRAINING:
        if processes.under_torchrun():
            processes.enter()
        elif params.compute.processes > 1:
            return processes.launch(params.compute, argv)
    _module(f"fvlm.stages.{arguments.command}").run(params, **options)
    return 0


def _on_a_model(arguments: argparse.Namespace) -> int:
    """Commands that work with a model folder anywhere, without the params of an experiment."""
    if arguments.command == "push":
        folder = _module("fvlm.predict.folder")
        print(folder.push(arguments.model, arguments.repository, private=arguments.private))
        return 0
    modules = {"predict": "fvlm.predict.command", "demo": "fvlm.demo.command", "export": "fvlm.predict.export"}
    module = modules[arguments.command]
    options = vars(arguments)
    for name in ("command", "params"):
        options.pop(name)
    _set_threads(options.get("threads", 1))
    return int(_module(module).run(**options))


def _set_threads(count: int) -> None:
    # NumPy's BLAS reads these when it is imported. Snakemake sets them from --cores, which must not change a sum.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    # Threads that wait for each other shall sleep, not spin: beside any other process a spinning thread holds the core
    # that the awaited one needs, which slows pretraining on 2 cores several times. Results do not depend on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _module(name: str) -> types.ModuleType:
    """A command's module, imported when it runs: torch takes seconds, and `splits` does not need it."""
    try:
        return importlib.import_module(name)
    except (RuntimeError, ImportError, OSError) as error:
        if "torchvision" not in str(error) and "libtorch" not in str(error):
            raise
        raise InputError(
            f"torch and torchvision do not go together ({error}); install both from the same index: "
            "a CPU-only build of torch does not go with torchvision's ordinary wheel"
        ) from None


def _known_setting(setting: str, params: Params) -> str:
    if setting not in params.settings:
        known = ", ".join(params.settings)
        hint = f"add it to settings in params.yaml (possible: {', '.join(SETTINGS)})" if setting in SETTINGS else ""
        raise InputError(f"--setting: expected one of {known}, got {setting!r}" + (f"; {hint}" if hint else ""))
    return setting


def _known_seed(seed: str | None, params: Params) -> int | None:
    """The seed of that name; None for the first one's run at the paths without a seed."""
    known = {str(each): each for each in params.seeds}
    if seed is not None and seed not in known:
        hint = "; add it to seeds in params.yaml" if seed.isdecimal() else ""
        raise InputError(f"--seed: expected one of {', '.join(known)}, got {seed!r}{hint}")
    return None if seed is None else known[seed]


def _known(name: str, known: Collection[str], option: str) -> str:
    if name not in known:
        raise InputError(f"{option}: expected one of {', '.join(known)}, got {name!r}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fvlm", description="Open-vocabulary detection with F-VLM, stage by stage.")
    parser.add_argument("--params", default="params.yaml", help="params file (default: params.yaml)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in STAGES.items():
        command = commands.add_parser(name, help=help)
        if name in PER_SETTING:
            which = f"one of {', '.join(SETTINGS)}" if name == "splits" else "one of the settings in params.yaml"
            command.add_argument("--setting", required=True, help=which)
        if name in PER_SEED:
            command.add_argument("--seed", help=SEED_HELP)
        if name in PER_VARIANT or name == "ablation_table":
            command.add_argument("--name", required=True, help=f"one of {', '.join(ABLATIONS)}")
        if name in PER_VARIANT:
            command.add_argument("--variant", required=True, help="one of the ablation's variants")
    check = commands.add_parser(
        "check", help="climb the ladder of checks: where a wrong score comes from, step by step"
    )
    check.add_argument("--setting", help="one of the settings in params.yaml (default: report.setting)")
    check.add_argument("--seed", help=SEED_HELP)
    check.add_argument("--json", metavar="FILE", help="write the outcome there too")
    score = commands.add_parser(
        "score",
        help="score any detector's results file (COCO's format) under a named protocol; needs no params.yaml",
        epilog=SPLIT_FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument("results", metavar="DETECTIONS.json", help="a list of {image_id, category_id, bbox, score}")
    score.add_argument("--annotations", required=True, metavar="FILE", help="the data set's instances file")
    score.add_argument("--split", default="ovcoco", metavar="ovcoco|FILE.yaml", help="(default: ovcoco)")
    score.add_argument(
        "--protocol",
        default="generalized",
        metavar="NAME",
        help="generalized (default), constrained_base or constrained_novel",
    )
    score.add_argument(
        "--images",
        default="split",
        metavar="split|all",
        help="images with a box of the scored classes (default), or all",
    )
    score.add_argument("--json", metavar="FILE", help="write the outcome there too, with full precision")
    _add_predict(commands.add_parser("predict", help="find what words name on pictures, with a trained model"))
    _add_demo(commands.add_parser("demo", help="a page in the browser: drop a picture, type words, see boxes"))
    _add_export(commands.add_parser("export", help="write a trained model for fixed names as one ONNX file"))
    push = commands.add_parser("push", help="upload a model folder to the Hugging Face Hub")
    push.add_argument("model", help="model folder, as runs/zsd")
    push.add_argument("repository", help="hf-hub:<owner>/<name>, created if need be")
    push.add_argument("--private", action="store_true", help="a repository that is created is private")
    commands.add_parser("check-params", help="validate params.yaml and stop")
    recorder = commands.add_parser(
        "sync", help="record one engine's results for the other, so that neither builds them again"
    )
    recorder.add_argument(
        "--if-complete", action="store_true", help="no error if neither engine has all of its results"
    )
    commands.add_parser("schema", help="print the JSON schema of params.yaml")
    return parser


def _add_predict(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "pictures", nargs="+", metavar="PICTURE|FOLDER|GLOB", help="where to look; a folder means all pictures below it"
    )
    _add_names(command)
    add("--threshold", type=float, default=0.3, help="least score of a box, 0 to 1 (default: 0.3)")
    add("--save", metavar="OUT", help="draw the boxes: a folder, or a .jpg or .png file for a single picture")
    add("--json", dest="json_path", metavar="FILE", help="write a COCO results list")
    add("--batch-size", type=_positive, default=8, help="pictures that the network sees at once (default: 8)")
    _add_model(command)


def _add_export(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("output", metavar="FILE.onnx", help="where to write it")
    _add_names(command)
    add("--threshold", type=float, help="least score of a box, 0 to 1 (default: the model's)")
    add("--model", default=MODEL, help=MODEL_HELP)


def _add_names(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--classes", metavar="NAMES", help='what to look for: "dog, red bus"; any words')
    add("--classes-file", metavar="FILE", help="names from a text file, one a line")
    add("--alpha", type=float, help="weight of the VLM for classes that had boxes in training (default: the model's)")
    add("--beta", type=float, help="weight of the VLM for all other names (default: the model's)")


def _add_demo(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--host", default="127.0.0.1", help="name or address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="0 for any that is free (default: 8000)")
    _add_model(command)


def _add_model(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", default=MODEL, help=MODEL_HELP)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute (default: cpu)")
    add("--threads", type=_positive, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    add("--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 pays on a GPU")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return number

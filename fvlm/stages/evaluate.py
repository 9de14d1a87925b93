"""Stage `evaluate`: score one setting under every protocol, from its raw detections; the network does not run again."""

from .. import layout
from ..compute import set_up_cpu
from ..data.coco import load_instances
from ..data.splits import novel_names
from ..evaluation import sweep, variants
from ..evaluation.curves import CURVE_COLUMNS, precision_recall
from ..evaluation.detections import coco_results
from ..evaluation.errors import ERROR_COLUMNS, errors
from ..evaluation.hits import match
from ..evaluation.raw import RawDetections
from ..evaluation.scoring import PER_CLASS_COLUMNS, headline, score
from ..io import write_csv, write_json
from ..params import Params


def run(params: Params, setting: str, seed: int | None = None) -> None:
    """Write metrics/<run>.json, and five tables and two COCO results files in runs/<run>/.

    <run> is <setting>_seed<seed>, or <setting> without a seed.

    The tables: per_class.csv, precision_recall.csv, errors.csv, fusion_sweep.csv, protocol_variants.csv. Everything is
    computed before anything is written, in `evaluate.processes` processes of one CPU thread each, whatever `compute`
    says.

    Raises:
        InputError: raw detections or splits are missing, unsound, or do not belong together.
    """
    set_up_cpu(1)
    run_name = layout.Run(setting, seed).name
    raw = RawDetections.load(layout.raw_detections(run_name))
    splits = {name: load_instances(layout.val_split(name)) for name in layout.VAL_SPLITS}
    print(f"evaluate {run_name}: {len(raw.image_ids)} images, {len(raw.boxes)} regions", flush=True)
    scores = score(raw, splits, params.evaluate, f"evaluate {run_name}: protocols")
    swept = sweep.sweep_fusion(raw, splits, params.evaluate, f"evaluate {run_name}: sweep")
    varied = variants.score_variants(raw, splits, params.evaluate, f"evaluate {run_name}: variants")

    results = {"fused": coco_results(scores.detections), "detector only": coco_results(scores.detector_only)}
    found = {words: match(of_scores, splits["generalized"]) for words, of_scores in results.items()}
    curves = list(precision_recall(found["fused"], novel_names()))
    causes = [row for words, matches in found.items() for row in errors(matches, novel_names(), words)]

    write_csv(layout.per_class(run_name), scores.per_class, PER_CLASS_COLUMNS)
    write_csv(layout.precision_recall(run_name), curves, CURVE_COLUMNS)
    write_csv(layout.errors(run_name), causes, ERROR_COLUMNS)
    write_csv(layout.fusion_sweep(run_name), swept, sweep.COLUMNS)
    write_csv(layout.protocol_variants(run_name), varied, variants.COLUMNS)
    write_json(layout.detections(run_name), results["fused"], compact=True)
    write_json(layout.detector_only_detections(run_name), results["detector only"], compact=True)
    write_json(layout.metrics(run_name), scores.metrics)
    print(f"evaluate {run_name}: {headline(scores.metrics)}", flush=True)

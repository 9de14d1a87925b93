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
from ..evaluation.scoring import PER_CLASS_COLUMNS, score
from ..io import write_csv, write_json
from ..params import Params


def run(params: Params, setting: str) -> None:
    """Write metrics/<setting>.json, and five tables and two COCO results files in runs/<setting>/.

    The tables: per_class.csv, precision_recall.csv, errors.csv, fusion_sweep.csv, protocol_variants.csv. Everything is
    computed before anything is written, in `evaluate.processes` processes of one CPU thread each, whatever `compute`
    says.

    Raises:
        InputError: raw detections or splits are missing, unsound, or do not belong together.
    """
    set_up_cpu(1)
    raw = RawDetections.load(layout.raw_detections(setting))
    splits = {name: load_instances(layout.val_split(name)) for name in layout.VAL_SPLITS}
    print(f"evaluate {setting}: {len(raw.image_ids)} images, {len(raw.boxes)} regions", flush=True)
    scores = score(raw, splits, params.evaluate, f"evaluate {setting}: protocols")
    swept = sweep.sweep_fusion(raw, splits, params.evaluate, f"evaluate {setting}: sweep")
    varied = variants.score_variants(raw, splits, params.evaluate, f"evaluate {setting}: variants")

    results = {"fused": coco_results(scores.detections), "detector only": coco_results(scores.detector_only)}
    found = {words: match(of_scores, splits["generalized"]) for words, of_scores in results.items()}
    curves = list(precision_recall(found["fused"], novel_names()))
    causes = [row for words, matches in found.items() for row in errors(matches, novel_names(), words)]

    write_csv(layout.per_class(setting), scores.per_class, PER_CLASS_COLUMNS)
    write_csv(layout.precision_recall(setting), curves, CURVE_COLUMNS)
    write_csv(layout.errors(setting), causes, ERROR_COLUMNS)
    write_csv(layout.fusion_sweep(setting), swept, sweep.COLUMNS)
    write_csv(layout.protocol_variants(setting), varied, variants.COLUMNS)
    write_json(layout.detections(setting), results["fused"], compact=True)
    write_json(layout.detector_only_detections(setting), results["detector only"], compact=True)
    write_json(layout.metrics(setting), scores.metrics)
    shown = ", ".join(
        f"{group} {scores.metrics[f'generalized_{group}_AP50']:.1f}" for group in ("novel", "base", "all")
    )
    print(f"evaluate {setting}: generalized AP50 {shown}", flush=True)

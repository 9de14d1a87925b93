rule vlm:
    input:
        OWN_WEIGHTS,
        code=[
            "fvlm/stages/vlm.py",
            "fvlm/checkpoint.py",
            "fvlm/data/backgrounds.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/data/emoji_categories.json",
            "fvlm/data/order.py",
            "fvlm/data/sprites.py",
            "fvlm/schedule.py",
            "fvlm/vlm/clip.py",
            "fvlm/vlm/clip_golden.json",
            "fvlm/vlm/freeze.py",
            "fvlm/vlm/golden.py",
            "fvlm/vlm/pretrain.py",
            "fvlm/vlm/prompts.py",
            "fvlm/vlm/text.py",
            "fvlm/vlm/torchscript.py",
            "fvlm/vlm/weights.py",
        ],
    output:
        "models/vlm.safetensors",
        "models/vlm.json",
    log:
        "logs/vlm.log",
    benchmark:
        "logs/benchmarks/vlm.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: PRETRAIN_THREADS
    resources:
        gpu=GPUS,
    params:
        sections=sections("compute", "vlm"),
    shell:
        "python -m fvlm vlm 2>&1 | tee {log}"


rule text:
    input:
        "models/vlm.safetensors",
        "models/vlm.json",
        code=[
            "fvlm/stages/text.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/vlm/clip.py",
            "fvlm/vlm/freeze.py",
            "fvlm/vlm/prompts.py",
            "fvlm/vlm/text.py",
        ],
    output:
        "data/text_embeddings.safetensors",
    log:
        "logs/text.log",
    conda:
        "../envs/fvlm.yaml"
    threads: THREADS
    params:
        sections=sections("compute", "text"),
    shell:
        "python -m fvlm text > {log} 2>&1"


rule train:
    input:
        MANIFEST,
        "data/splits/train_{setting}.json",
        "models/vlm.safetensors",
        "models/vlm.json",
        "data/text_embeddings.safetensors",
        code=[
            "fvlm/stages/train.py",
            "fvlm/checkpoint.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/data/dataset.py",
            "fvlm/data/loading.py",
            "fvlm/data/order.py",
            "fvlm/data/transforms.py",
            "fvlm/detector/box_head.py",
            "fvlm/detector/detector.py",
            "fvlm/detector/fpn.py",
            "fvlm/detector/losses.py",
            "fvlm/detector/recompute.py",
            "fvlm/detector/region_conv.py",
            "fvlm/detector/rpn.py",
            "fvlm/detector/targets.py",
            "fvlm/schedule.py",
            "fvlm/training/loop.py",
            "fvlm/training/parallel.py",
            "fvlm/training/preflight.py",
            "fvlm/training/step.py",
            "fvlm/vlm/clip.py",
            "fvlm/vlm/freeze.py",
            "fvlm/vlm/pooling.py",
        ],
    output:
        "runs/{setting}_seed{seed}/model.safetensors",
        "runs/{setting}_seed{seed}/train.json",
        report(
            "runs/{setting}_seed{seed}/losses.csv",
            caption="../report/losses_csv.rst",
            category="Training",
            labels={"setting": "{setting}", "seed": "{seed}", "shows": "losses of every step (CSV)"},
        ),
    log:
        "logs/train/{setting}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/train/{setting}_seed{seed}.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: TRAIN_THREADS
    resources:
        gpu=TRAIN_GPUS,
    params:
        sections=sections("compute", "model", "train"),
    shell:
        "python -m fvlm train --setting {wildcards.setting} --seed {wildcards.seed} 2>&1 | tee {log}"


rule detect:
    input:
        MANIFEST,
        "runs/{setting}_seed{seed}/model.safetensors",
        "data/text_embeddings.safetensors",
        "data/splits/val_all.json",
        code=[
            "fvlm/stages/detect.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/data/dataset.py",
            "fvlm/data/loading.py",
            "fvlm/data/order.py",
            "fvlm/data/transforms.py",
            "fvlm/detector/box_head.py",
            "fvlm/detector/detector.py",
            "fvlm/detector/fpn.py",
            "fvlm/detector/losses.py",
            "fvlm/detector/recompute.py",
            "fvlm/detector/region_conv.py",
            "fvlm/detector/rpn.py",
            "fvlm/detector/targets.py",
            "fvlm/detector/trained.py",
            "fvlm/evaluation/raw.py",
            "fvlm/vlm/clip.py",
            "fvlm/vlm/freeze.py",
            "fvlm/vlm/pooling.py",
        ],
    output:
        "runs/{setting}_seed{seed}/raw_detections.safetensors",
    log:
        "logs/detect/{setting}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/detect/{setting}_seed{seed}.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        sections=sections("compute", "detect"),
    shell:
        "python -m fvlm detect --setting {wildcards.setting} --seed {wildcards.seed} > {log} 2>&1"


rule package:
    input:
        "runs/{setting}/model.safetensors",
        "runs/{setting}/train.json",
        "metrics/{setting}.json",
        "models/vlm.safetensors",
        "models/vlm.json",
        "data/text_embeddings.safetensors",
        code=[
            "fvlm/stages/package.py",
            "fvlm/predict/folder.py",
            "fvlm/report/card.py",
            "fvlm/report/tables.py",
            "fvlm/vlm/clip.py",
            "fvlm/vlm/freeze.py",
            "fvlm/vlm/text_tower.py",
        ],
    output:
        "runs/{setting}/text.safetensors",
        "runs/{setting}/model.json",
        "runs/{setting}/README.md",
    log:
        "logs/package/{setting}.log",
    conda:
        "../envs/fvlm.yaml"
    params:
        sections=sections("data", "evaluate"),
    shell:
        "python -m fvlm package --setting {wildcards.setting} > {log} 2>&1"


rule evaluate:
    input:
        "runs/{setting}_seed{seed}/raw_detections.safetensors",
        "data/splits/val_base.json",
        "data/splits/val_novel.json",
        "data/splits/val_generalized.json",
        "data/splits/val_all.json",
        code=[
            "fvlm/stages/evaluate.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/data/ov_coco.json",
            "fvlm/data/splits.py",
            "fvlm/detector/scores.py",
            "fvlm/evaluation/ap.py",
            "fvlm/evaluation/best.py",
            "fvlm/evaluation/curves.py",
            "fvlm/evaluation/detections.py",
            "fvlm/evaluation/errors.py",
            "fvlm/evaluation/hits.py",
            "fvlm/evaluation/matching.py",
            "fvlm/evaluation/protocols.py",
            "fvlm/evaluation/raw.py",
            "fvlm/evaluation/scoring.py",
            "fvlm/evaluation/sweep.py",
            "fvlm/evaluation/variants.json",
            "fvlm/evaluation/variants.py",
        ],
    output:
        "metrics/{setting}_seed{seed}.json",
        "runs/{setting}_seed{seed}/detections.json",
        "runs/{setting}_seed{seed}/detections_detector_only.json",
        report(
            "runs/{setting}_seed{seed}/per_class.csv",
            caption="../report/per_class_csv.rst",
            category="Scores",
            labels={"setting": "{setting}", "seed": "{seed}", "shows": "AP by class (CSV)"},
        ),
        report(
            "runs/{setting}_seed{seed}/precision_recall.csv",
            caption="../report/precision_recall_csv.rst",
            category="Scores",
            labels={"setting": "{setting}", "seed": "{seed}", "shows": "precision and recall (CSV)"},
        ),
        report(
            "runs/{setting}_seed{seed}/errors.csv",
            caption="../report/errors_csv.rst",
            category="Scores",
            labels={"setting": "{setting}", "seed": "{seed}", "shows": "errors by kind (CSV)"},
        ),
        report(
            "runs/{setting}_seed{seed}/fusion_sweep.csv",
            caption="../report/fusion_sweep_csv.rst",
            category="Scores",
            labels={"setting": "{setting}", "seed": "{seed}", "shows": "fusion, temperature and NMS tried (CSV)"},
        ),
        report(
            "runs/{setting}_seed{seed}/protocol_variants.csv",
            caption="../report/protocol_variants_csv.rst",
            category="Scores",
            labels={"setting": "{setting}", "seed": "{seed}", "shows": "other people's protocols (CSV)"},
        ),
    log:
        "logs/evaluate/{setting}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/evaluate/{setting}_seed{seed}.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: EVALUATE_PROCESSES
    params:
        sections=sections("evaluate"),
    shell:
        "python -m fvlm evaluate --setting {wildcards.setting} --seed {wildcards.seed} > {log} 2>&1"


rule first_seed:
    input:
        expand("runs/{{setting}}_seed{seed}/{file}", seed=SEEDS[0], file=RUN_FILES),
        f"metrics/{{setting}}_seed{SEEDS[0]}.json",
        code="fvlm/stages/first_seed.py",
    output:
        expand("runs/{{setting}}/{file}", file=RUN_FILES),
        "metrics/{setting}.json",
    log:
        "logs/first_seed/{setting}.log",
    localrule: True
    conda:
        "../envs/fvlm.yaml"
    params:
        sections=sections(),
    shell:
        "python -m fvlm first_seed --setting {wildcards.setting} > {log} 2>&1"

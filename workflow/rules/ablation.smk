# Targets beside `all`: freeze_ablation, prompt_ablation, background_ablation and setting_ablation. They are Snakemake's
# alone: `dvc repro` runs every stage of dvc.yaml, and has no optional ones. Under DVC a variant is an experiment:
# `dvc exp run -n norm_eval -S model.freeze=norm_eval`.
#
# A variant that is the pipeline's own run takes its files, and has no job of its own but the last. The report shows the
# ablations whose comparison is there; see rule report.


wildcard_constraints:
    ablation="|".join(ABLATIONS),
    variant="|".join(sorted({re.escape(variant) for ablation in ABLATIONS.values() for variant in ablation.variants})),


rule ablation_text:
    input:
        "models/vlm.safetensors",
        "models/vlm.json",
        code=["fvlm/stages/ablation_text.py", *rules.text.input.code],
    output:
        "ablations/{ablation}/{variant}/text_embeddings.safetensors",
    log:
        "logs/ablation_text/{ablation}/{variant}.log",
    conda:
        "../envs/fvlm.yaml"
    threads: THREADS
    params:
        sections=sections_of_variant("compute", "text"),
    shell:
        "python -m fvlm ablation_text --name {wildcards.ablation} --variant {wildcards.variant} > {log} 2>&1"


rule ablation_train:
    input:
        MANIFEST,
        of_variant("split"),
        "models/vlm.safetensors",
        "models/vlm.json",
        of_variant("text"),
        code=["fvlm/stages/ablation_train.py", *rules.train.input.code],
    output:
        "ablations/{ablation}/{variant}/model.safetensors",
        "ablations/{ablation}/{variant}/train.json",
        "ablations/{ablation}/{variant}/losses.csv",
    log:
        "logs/ablation_train/{ablation}/{variant}.log",
    benchmark:
        "logs/benchmarks/ablation_train/{ablation}/{variant}.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: TRAIN_THREADS
    resources:
        gpu=TRAIN_GPUS,
    params:
        sections=sections_of_variant("compute", "model", "train"),
    shell:
        "python -m fvlm ablation_train --name {wildcards.ablation} --variant {wildcards.variant} 2>&1 | tee {log}"


rule ablation_detect:
    input:
        MANIFEST,
        of_variant("model"),
        of_variant("text"),
        "data/splits/val_all.json",
        code=["fvlm/stages/ablation_detect.py", *rules.detect.input.code],
    output:
        "ablations/{ablation}/{variant}/raw_detections.safetensors",
    log:
        "logs/ablation_detect/{ablation}/{variant}.log",
    benchmark:
        "logs/benchmarks/ablation_detect/{ablation}/{variant}.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        sections=sections_of_variant("compute", "detect"),
    shell:
        "python -m fvlm ablation_detect --name {wildcards.ablation} --variant {wildcards.variant} > {log} 2>&1"


rule ablation_evaluate:
    input:
        "models/vlm.safetensors",
        of_variant("model"),
        of_variant("record"),
        of_variant("raw_detections"),
        "data/splits/val_base.json",
        "data/splits/val_novel.json",
        "data/splits/val_generalized.json",
        "data/splits/val_all.json",
        code=[
            "fvlm/stages/ablation_evaluate.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/data/ov_coco.json",
            "fvlm/data/splits.py",
            "fvlm/detector/scores.py",
            "fvlm/evaluation/ap.py",
            "fvlm/evaluation/best.py",
            "fvlm/evaluation/detections.py",
            "fvlm/evaluation/matching.py",
            "fvlm/evaluation/protocols.py",
            "fvlm/evaluation/raw.py",
            "fvlm/evaluation/scoring.py",
            "fvlm/vlm/freeze.py",
        ],
    output:
        "ablations/{ablation}/{variant}/scores.json",
    log:
        "logs/ablation_evaluate/{ablation}/{variant}.log",
    conda:
        "../envs/fvlm.yaml"
    threads: EVALUATE_PROCESSES
    params:
        sections=sections_of_variant("data", "vlm", "splits", "text", "model", "train", "evaluate"),
    shell:
        "python -m fvlm ablation_evaluate --name {wildcards.ablation} --variant {wildcards.variant} > {log} 2>&1"


rule ablation_table:
    input:
        scores_of_variants,
        code=[
            "fvlm/ablations.py",
            "fvlm/report/ablations.py",
            "fvlm/report/plots.py",
            "fvlm/report/tables.py",
            "fvlm/stages/ablation_table.py",
        ],
    output:
        "ablations/{ablation}/comparison.json",
        report(
            "ablations/{ablation}/comparison.csv",
            caption="../report/ablation.rst",
            category="Ablations",
            labels={"ablation": "{ablation}", "shows": "table (CSV)"},
        ),
        report(
            "ablations/{ablation}/comparison.md",
            caption="../report/ablation.rst",
            category="Ablations",
            labels={"ablation": "{ablation}", "shows": "table (Markdown)"},
        ),
        report(
            "ablations/{ablation}/comparison.png",
            caption="../report/ablation.rst",
            category="Ablations",
            labels={"ablation": "{ablation}", "shows": "plot"},
        ),
    log:
        "logs/ablation_table/{ablation}.log",
    localrule: True
    conda:
        "../envs/fvlm.yaml"
    shell:
        "python -m fvlm ablation_table --name {wildcards.ablation} > {log} 2>&1"


rule freeze_ablation:
    input:
        "ablations/freeze/comparison.json",


rule prompt_ablation:
    input:
        "ablations/prompt/comparison.json",


rule background_ablation:
    input:
        "ablations/background/comparison.json",


rule setting_ablation:
    input:
        "ablations/setting/comparison.json",

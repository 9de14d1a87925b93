# Targets beside `all`. They are Snakemake's alone: `dvc repro` runs every stage of dvc.yaml, and has no optional ones.
# Under DVC the same comparison is `dvc exp run -n norm_eval -S model.freeze=norm_eval`.


rule freeze_mode:
    input:
        MANIFEST,
        "data/splits/train_zsd.json",
        "data/splits/val_base.json",
        "data/splits/val_novel.json",
        "data/splits/val_generalized.json",
        "data/splits/val_all.json",
        "models/vlm.safetensors",
        "models/vlm.json",
        "data/text_embeddings.safetensors",
        code=sorted(
            {
                "fvlm/stages/freeze_mode.py",
                *rules.train.input.code,
                *rules.detect.input.code,
                *rules.evaluate.input.code,
            }
        ),
    output:
        "ablations/freeze/{mode}/model.safetensors",
        "ablations/freeze/{mode}/train.json",
        "ablations/freeze/{mode}/losses.csv",
        "ablations/freeze/{mode}/raw_detections.safetensors",
        "ablations/freeze/{mode}/scores.json",
    log:
        "logs/freeze_mode/{mode}.log",
    benchmark:
        "logs/benchmarks/freeze_mode/{mode}.tsv"
    conda:
        "../envs/fvlm.yaml"
    threads: TRAIN_THREADS
    resources:
        gpu=TRAIN_GPUS,
    params:
        sections=sections("compute", "model", "train", "detect", "evaluate"),
        seed=SEEDS[0],
    shell:
        "python -m fvlm freeze_mode --mode {wildcards.mode} 2>&1 | tee {log}"


rule freeze_ablation:
    input:
        expand("ablations/freeze/{mode}/scores.json", mode=["all", "norm_eval", "none"]),
        code=[
            "fvlm/stages/freeze_ablation.py",
            "fvlm/report/plots.py",
            "fvlm/report/tables.py",
        ],
    output:
        report(
            "ablations/freeze/comparison.csv",
            caption="../report/freeze_ablation.rst",
            category="Ablations",
            labels={"shows": "freezing (CSV)"},
        ),
        report(
            "ablations/freeze/comparison.md",
            caption="../report/freeze_ablation.rst",
            category="Ablations",
            labels={"shows": "freezing (Markdown)"},
        ),
        report(
            "ablations/freeze/comparison.png",
            caption="../report/freeze_ablation.rst",
            category="Ablations",
            labels={"shows": "freezing"},
        ),
    log:
        "logs/freeze_ablation.log",
    localrule: True
    conda:
        "../envs/fvlm.yaml"
    shell:
        "python -m fvlm freeze_ablation > {log} 2>&1"
